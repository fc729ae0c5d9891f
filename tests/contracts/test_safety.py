"""What no file of the project does: read pickles, run code of a model or of the data, open a shell or an interface."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(file for folder in ("jobs", "dags", "scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
# Modules and functions that may run what they read.
MODULES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
# Keyword arguments, and the only value each may have.
ONLY = {"trust_remote_code": False, "allow_pickle": False, "shell": False, "use_safetensors": True}
LOADERS = ("AutoModel.from_pretrained", "AutoModelForSequenceClassification.from_pretrained")


def faults(tree: ast.AST) -> list[str]:
    """What a file does that it must not, with its line."""
    return [f"{node.lineno}: {told}" for node in ast.walk(tree) for told in _of(node)]  # type: ignore[attr-defined]


def _of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom):
        return [node.module for _ in [0] if node.module and node.module.split(".")[0] in MODULES]
    if not isinstance(node, ast.Call):
        return []
    name = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    told = [name] if name in CALLS else []
    told += [f"{name}({key}={given[key]})" for key, value in ONLY.items() if given.get(key, str(value)) != str(value)]
    return told + [f"{name} without {key}" for key in ("use_safetensors",) if name in LOADERS and key not in given]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_read_is_run(file: Path):
    assert faults(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "np.load(file, allow_pickle=True)",
        "AutoModel.from_pretrained(place)",
        "AutoTokenizer.from_pretrained(place, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_rule_finds_what_it_forbids(line: str):
    assert len(faults(ast.parse(line))) == 1


def environment(**given: str) -> dict[str, str]:
    """What scripts/env.sh exports, and the umask, as a shell sees them."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "LAKEREC_"))}
    command = ["bash", "-c", "umask 022; source scripts/env.sh; env; echo UMASK=$(umask)"]
    told = subprocess.run(command, cwd=ROOT, env=clean | given, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def test_airflow_listens_on_loopback_asks_for_a_password_and_shows_no_configuration():
    found = environment()
    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert found["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin"  # user and role; the password is made
    assert "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS" not in found
    assert found["AIRFLOW__API__EXPOSE_CONFIG"] == "False"


def test_what_airflow_writes_is_closed_to_others():
    assert environment()["UMASK"] == "0027"


@pytest.mark.parametrize("lists", ["", "the server of SHOP_DB"])
def test_no_servers_uri_is_printed_by_make_up(lists: str):
    script = (ROOT / "scripts" / "up.sh").read_text()
    last = "".join(script.partition("printf 'URL ")[1:])
    known = {"STATE": "there", "URL": "http://127.0.0.1:8080", "password": "of-airflow", "lists": lists}
    known["LAKEREC_SERVING_URI"] = "postgresql://lakerec:hidden-7@127.0.0.1:5555/serving_shop"
    told = subprocess.run(["bash", "-euc", last], env=known, capture_output=True, text=True, check=True).stdout
    embedded = "database serving_shop of the server whose URI is in there/postgres/uri"
    assert told.splitlines()[-1] == f"lists     {lists or embedded}" and "hidden-7" not in told
    assert "lists=${!serving:+the server of $serving}\n" in script


def started(state: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """What scripts/up.sh says beside a port that is taken, at which it ends before it starts anything."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "LAKEREC_", "CONFIG"))}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        clean |= {"LAKEREC_STATE": str(state), "LAKEREC_PORT": str(taken.getsockname()[1]), **given}
        return subprocess.run(["scripts/up.sh"], cwd=ROOT, env=clean, capture_output=True, text=True)


def test_up_alone_starts_what_was_started_last_and_misses_its_keys(tmp_path):
    """In a fresh shell, at night: neither the demo in production's place nor production without its keys."""
    mine = tmp_path / "shop.yaml"
    (tmp_path / "config").write_text(f"{mine}\n")
    (tmp_path / "environment").write_text("AIRFLOW_CONN_ALERTS\nLAKEREC_USER_KEY\n")
    assert f"there is no configuration {mine}" in started(tmp_path).stderr
    mine.write_text("lake: lake\n")
    assert "with AIRFLOW_CONN_ALERTS LAKEREC_USER_KEY in the environment, and now without" in started(tmp_path).stderr
    assert "with LAKEREC_USER_KEY in" in started(tmp_path, AIRFLOW_CONN_ALERTS="x").stderr
    for wanted in (
        {"AIRFLOW_CONN_ALERTS": "x", "LAKEREC_USER_KEY": "y"},
        {"FORGET": "yes"},
        {"CONFIG": "conf/demo.yaml"},
    ):
        found = started(tmp_path, **wanted)
        assert found.returncode == 1 and "is in use by another program" in found.stderr


def test_up_keeps_names_and_no_values():
    assert (
        "given=$(env | grep -oE '^(LAKEREC_|AIRFLOW_|AWS_|OPENLINEAGE_|PG)[A-Za-z0-9_]*'"
        in (ROOT / "scripts" / "up.sh").read_text()
    )
