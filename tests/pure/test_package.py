"""The zip that executors import: whole without a checkout, and the same for the same code."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePath

import lakerec
from lakerec.package import write_package
from lakerec.quality import load_suite
from lakerec.tables import table, table_names

PROBE = """
import lakerec
from lakerec.quality import load_suite
from lakerec.tables import sql_text, table, table_names
print(lakerec.__file__, *table_names(), table("gold.recommendations").key, load_suite("silver.events"), sep="\\n")
print(sql_text("views", "recommendations_latest"))
"""


def test_without_a_checkout_the_zip_has_code_tables_views_and_expectations(tmp_path: Path) -> None:
    zipped = write_package(tmp_path / "of" / "lakerec.zip")
    command = [sys.executable, "-c", PROBE]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(zipped)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{zipped}/lakerec/__init__.py\n")
    for known in (*table_names(), table("gold.recommendations").key, load_suite("silver.events")):
        assert f"\n{known}\n" in done.stdout
    assert "as_of_date" in done.stdout.rsplit("Suite(", 1)[1].split("\n", 1)[1]


def test_the_same_code_is_the_same_zip(tmp_path: Path) -> None:
    first = write_package(tmp_path / "a.zip").read_bytes()
    file = Path(lakerec.__file__)
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 60))
    assert write_package(tmp_path / "b.zip").read_bytes() == first
    assert [each.name for each in tmp_path.iterdir() if each.suffix != ".zip"] == []


def test_a_wheel_has_what_the_zip_has(tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lakerec"]
    names = [PurePath(name) for name in zipfile.ZipFile(write_package(tmp_path / "lakerec.zip")).namelist()]
    data = [name for name in names if name.suffix != ".py"]
    assert len(data) > len(table_names())
    assert [name for name in data if not any(name.match(f"lakerec/{pattern}") for pattern in patterns)] == []
