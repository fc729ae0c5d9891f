"""Deployments on clusters: the YAML of docs/operations.md as Spark properties and as the command of a task.

LAKEREC_GOLDEN=write pytest tests/dags writes the golden files anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import SETTINGS
from tests.dags.test_dags import PYTHON, ROOT, drive

from lakerec import session
from lakerec.config import Config, load_config
from lakerec.errors import ConfigError

GOLDEN = ROOT / "tests" / "golden" / "cluster"
MASTERS = {"standalone": "spark://", "yarn": "yarn", "kubernetes": "k8s://"}
GUIDE = (ROOT / "docs" / "operations.md").read_text()
SHOWN = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)]


@pytest.fixture(params=MASTERS)
def cluster(request, tmp_path: Path, monkeypatch) -> tuple[str, Config]:
    """A kind of cluster and its deployment: what the guide shows, on the sources of the tests' shop."""
    shown = [each for each in SHOWN if each.get("spark", {}).get("master", "").startswith(MASTERS[request.param])]
    assert len(shown) == 1
    file = tmp_path / "shop.yaml"
    file.write_text(yaml.safe_dump(SETTINGS | shown[0]))
    monkeypatch.delenv("LAKEREC_JAVA_OPTIONS", raising=False)
    for name, place in (("JARS", "jars"), ("ARCHIVE", "jars/lakerec.jsa"), ("PACKAGE", "lakerec.zip")):
        monkeypatch.setattr(session, name, tmp_path / place)
    for jar in ("jars/delta.jar", "jars/s3/hadoop-aws.jar"):
        (tmp_path / jar).parent.mkdir(exist_ok=True)
        (tmp_path / jar).touch()
    return request.param, load_config(file)


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("LAKEREC_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{name} differs: look, then write it anew with LAKEREC_GOLDEN=write"


def test_properties_are_those_of_the_golden_file(cluster, tmp_path: Path) -> None:
    kind, config = cluster
    session.write_properties(config, tmp_path / "spark.conf")
    assert (tmp_path / "lakerec.zip").exists() == (kind != "kubernetes")
    text = (tmp_path / "spark.conf").read_text()
    compare(f"{kind}.conf", text.replace(str(session.HOME), "{home}").replace(str(tmp_path), "{state}"))


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")
def test_the_command_of_a_task_is_that_of_the_golden_file(cluster, home) -> None:
    kind, config = cluster
    known = {"LAKEREC_CLUSTER": kind if kind != "standalone" else "", "LAKEREC_HOME": "/srv/lakerec"}
    loaded: Any = drive(home, "load", AIRFLOW_CONN_SPARK_DEFAULT=session.connection(config), **known)
    command = loaded["dags"]["reco_daily"]["tasks"]["score_candidates"]["command"]
    compare(f"{kind}.command", "\n".join(command).replace("/srv/lakerec", "{home}") + "\n")


@pytest.mark.parametrize("master", ["spark://master:7077", "yarn", "k8s://https://api:6443"])
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")
def test_a_driver_beside_its_task_has_the_environment_whatever_the_master(master, home) -> None:
    known = json.dumps({"conn_type": "spark", "host": master, "extra": {"deploy-mode": "client"}})
    found = drive(home, "environment", AIRFLOW_CONN_SPARK_DEFAULT=known)
    assert found == ["LAKEREC_TASK", "PYSPARK_PYTHON", "PYTHONPATH"]


def test_a_driver_on_a_cluster_is_given_no_flag_that_names_a_file_of_this_machine(cluster) -> None:
    kind, config = cluster
    flags = session.properties(config).get("spark.driver.extraJavaOptions", "")
    assert (str(session.HOME) in flags) == (kind != "yarn")


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-airflow: run make install")
def test_the_exit_code_of_a_driver_on_yarn_decides_between_fail_and_retry(home) -> None:
    outcome = drive(home, "execute_on_yarn", [0, 1, 12, 20], LAKEREC_HOME=str(home), LAKEREC_CLUSTER="yarn")
    assert list(outcome.pop("0")) == ["bronze.events"]
    assert outcome == {"1": "AirflowException", "12": "AirflowFailException", "20": "AirflowException"}


def test_a_folder_that_says_no_file_system_is_refused_where_the_cluster_has_another(cluster):
    _, config = cluster
    session.refuse_bare_paths(config, "file:///")
    told = r"shop.yaml, line \d+: sources.events.path: events/.* says no file system.*is hdfs://name"
    with pytest.raises(ConfigError, match=told):
        session.refuse_bare_paths(config.model_copy(update={"lake": "s3a://b/shop"}), "hdfs://name")
    with pytest.raises(ConfigError, match="/mnt/shop says no file system"):
        session.refuse_bare_paths(config.model_copy(update={"lake": "/mnt/shop"}), "hdfs://name")
    found = {
        name: each and each.model_copy(update={"path": f"hdfs://name/{each.path}"}) for name, each in config.sources
    }
    sources = config.sources.model_copy(update=found)
    session.refuse_bare_paths(config.model_copy(update={"lake": "s3a://b/shop", "sources": sources}), "hdfs://name")
