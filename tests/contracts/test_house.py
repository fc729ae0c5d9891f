"""The rules of the house: entry points, names of tables, the length and the words of functions, tasks and jobs."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakerec.tables import table, table_names

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
CODE = sorted([*(ROOT / "jobs").rglob("*.py"), *(ROOT / "dags").rglob("*.py")])
TABLE = re.compile(r"(bronze|silver|gold|ml|ops|quarantine)\.[a-z_]+")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(file: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(file: Path) -> list[Function]:
    """Every function and method of a file."""
    return [node for node in ast.walk(parsed(file)) if isinstance(node, Function)]


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public functions, classes and methods, those inside of functions left out."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def place(file: Path, node: Function | ast.ClassDef) -> str:
    """Where a name stands, for a message."""
    return f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.stem)
def test_an_entry_point_is_short_tells_what_it_does_and_runs(file):
    tree = parsed(file)
    assert ast.get_docstring(tree)
    assert len(file.read_text().splitlines()) < 100
    (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert [argument.arg for argument in run.args.args] == ["job"]
    body = r"if __name__ == '__main__':\n    main\(run(, ahead='(.+)')?\)"
    last = re.fullmatch(body, ast.unparse(tree.body[-1]))
    assert last
    assert not last[2] or importlib.util.find_spec(last[2]), f"{file.name} imports {last[2]} ahead: no such module"


def test_the_package_holds_every_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["setuptools"]["py-modules"]) == [file.stem for file in JOBS]


def test_every_table_named_in_the_code_has_a_ddl():
    named = {
        node.value: f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in CODE
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TABLE.fullmatch(node.value)
    }
    assert {"bronze.events", "silver.events", "gold.recommendations"} <= set(named)
    assert {name: where for name, where in named.items() if name not in table_names()} == {}


def test_every_table_that_has_a_ddl_is_named_in_the_code():
    text = "\n".join(file.read_text() for file in CODE)
    assert [name for name in table_names() if name not in text] == []


@pytest.mark.parametrize("name", table_names())
def test_a_ddl_names_its_table_and_says_key_partition_and_every_column(name):
    spec = table(name)
    text = (ROOT / "sql" / "tables" / f"{name}.sql").read_text()
    assert f"CREATE TABLE {name} (" in text
    assert spec.comment and all(column.comment for column in spec.columns)
    assert {*spec.key, *spec.partition} <= set(spec.column_names)


def test_silver_tables_and_their_expectations_go_by_one_name():
    silver = {name for name in table_names() if name.startswith("silver.")}
    assert {file.stem for file in (ROOT / "expectations").glob("*.yaml")} == silver


def test_functions_are_short():
    lengths = [node.end_lineno - node.lineno + 1 for file in CODE for node in functions(file)]
    assert len(lengths) > 300
    assert statistics.median(lengths) < 10
    assert sum(length < 25 for length in lengths) / len(lengths) >= 0.9


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_public_names_are_told_and_every_function_is_annotated(file):
    tree = parsed(file)
    assert ast.get_docstring(tree), "the module has no docstring"
    assert [place(file, node) for node in public(tree) if not ast.get_docstring(node)] == []
    assert [place(file, node) for node in functions(file) if not annotated(node)] == []


def annotated(node: Function) -> bool:
    """Whether result and all arguments but self and cls have types."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    named = [argument for argument in given if argument and argument.arg not in ("self", "cls")]
    return node.returns is not None and all(argument.annotation for argument in named)


def test_every_job_task_of_a_dag_has_its_file():
    nodes = [node for file in (ROOT / "dags").glob("*.py") for node in ast.walk(parsed(file))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    submitted = [call for call in calls if call.func.id == "LakerecJob"]
    tasks = {
        word.value.value
        for call in submitted
        for word in call.keywords
        if word.arg == "task_id" and isinstance(word.value, ast.Constant)
    }
    assert tasks == {file.stem for file in JOBS}
