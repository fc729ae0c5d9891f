"""The deployment of tests/faults/stages.py as it is before each step: what is killed starts from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from stages import Stages
from tests.conftest import Shop


@pytest.fixture(scope="session")
def stages(spark, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The deployment's folder as it is before each step, and at the `end`."""
    return Stages.of(Shop(tmp_path_factory.mktemp("stages") / "shop", spark))


@pytest.fixture()
def before(stages: Stages, spark, tmp_path: Path) -> Callable[..., Shop]:
    """Makes a copy of the deployment as it is before a step, in a folder of its own."""

    def copied(step: str, name: str = "shop") -> Shop:
        folder = tmp_path / name
        shutil.copytree(stages[step], folder)
        return Shop(folder, spark, yaml.safe_load((folder / "config.yaml").read_text()))

    return copied
