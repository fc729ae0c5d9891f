"""The table of errors: one exit code each, and which of them a retry can help."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from pyspark.sql import DataFrame

sys.path.insert(0, str(Path(__file__).parents[2] / "dags"))
from common.rules import FINAL
from lakerec import errors
from lakerec.errors import ContractError, LakerecError, leaves
from lakerec.job import guarded
from lakerec.lake import _conformed
from lakerec.tables import table


def test_every_class_is_a_leaf_of_the_one_root():
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert {LakerecError, *leaves()} == set(classes)
    assert all(leaf.__bases__ == (LakerecError,) for leaf in leaves())


def test_exit_codes_are_the_leaves_own_and_neither_success_nor_a_signal():
    codes = [leaf.exit_code for leaf in leaves()]
    assert len(set(codes)) == len(codes)
    assert codes == sorted(codes)
    assert all(10 <= code < 40 for code in codes)


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_faults_of_input_are_final_and_faults_of_circumstance_are_retried(leaf):
    assert leaf.retry is (leaf.exit_code in range(20, 30))
    assert leaf.retry is (leaf.exit_code not in FINAL)


def test_the_dags_retry_the_faults_of_circumstance_alone():
    assert not set(FINAL) & set(range(20, 30)) and {10, 19, 30} < set(FINAL)


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_a_job_ends_with_the_code_and_names_the_class_and_its_section(leaf, capsys):
    def fail() -> None:
        raise leaf("what, where, what to do")

    assert guarded(fail) == leaf.exit_code
    assert capsys.readouterr().err == (
        f"{leaf.__name__}: what, where, what to do\n(what to do: docs/operations.md#{leaf.__name__.lower()})\n"
    )


def test_success_is_0_and_an_unknown_error_is_not_swallowed():
    assert guarded(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: print(1 / 0))


def test_rows_of_other_columns_say_where_the_columns_are_named():
    with pytest.raises(ContractError, match=r"not in the DDL \['nobody'\]; nothing was written.*ops.tombstones.sql"):
        _conformed(cast(DataFrame, SimpleNamespace(columns=["nobody"])), table("ops.tombstones"))
