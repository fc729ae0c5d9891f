"""Scoring away from the driver's process: the same lists from executors of their own, and after a kill."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest
from pyspark.resource import ResourceInformation
from tests.conftest import LAKE_STEPS, ROOT, Shop, Start, day_after, event
from tests.dags.test_dags import PYTHON, drive
from tests.processes import job_command, kill

from lakerec import scoring
from lakerec.session import connection

pytestmark = pytest.mark.long
DAYS, PEOPLE = 6, 240  # two buckets on one core
SPARK = Path(pyspark.__file__).parent
LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.executor.memory": "1g"}
ONE_GPU = {"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1"}


@pytest.fixture(scope="module")
def trained(spark, tmp_path_factory) -> Shop:
    """Six days, a promoted model whose language model reads, no lists yet."""
    shop = Shop(tmp_path_factory.mktemp("cluster"), spark)
    shop.settings["scorer"]["language_model"] = "always"
    shop.settings["scorer"]["training"]["targets"] = ["purchase"]
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        told = enumerate(f"u{m}" for m in range(PEOPLE))
        rows = [event(1000 * n + m, user=user, day=day_after(n), item=f"i{m % 3}", kind="purchase") for m, user in told]
        shop.deliver(day_after(n), rows)
    steps = ("embed_items", "build_patterns", "build_examples", "train_scorer", "evaluate_scorer", "promote_scorer")
    shop.run(*LAKE_STEPS, *steps, days=DAYS)
    return shop


@pytest.fixture(scope="module")
def wanted(trained: Shop) -> list[tuple]:
    """The lists of the session's own process."""
    trained.run("score_candidates", days=DAYS)
    assert len({row["user_id"] for row in trained.rows("gold.recommendations")}) == PEOPLE + 1
    return lists(trained)


@pytest.fixture(params=["local-cluster", "standalone"])
def cluster(request, start: Start, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """`spark` of the YAML for two executors of one core each, in processes of their own."""
    if request.param == "standalone":
        yield {"master": standalone(start, tmp_path), "properties": LOOPBACK | ONE_GPU}
        logs = "".join(log.read_text() for log in tmp_path.glob("worker-*/app-*/*/stderr"))
        assert sorted(re.findall(r"gpu -> \[name: gpu, addresses: (\w+)\]", logs)) == ["0", "1"], logs
        return
    yield {"master": "local-cluster[2,1,1024]"}
    shutil.rmtree(SPARK / "work", ignore_errors=True)


def standalone(start: Start, place: Path) -> str:
    """A master and two workers on loopback that say they have a GPU each; the master's address."""
    log = place / "master.txt"
    daemon(start, log, "master.Master", SPARK_MASTER_OPTS="-Dspark.master.rest.enabled=false")
    master = wait_for(r"Starting Spark master at (spark://\S+)", log)[0]
    for number in range(2):
        folder = place / f"worker-{number}"
        known = {"SPARK_LOCAL_DIRS": str(place / "local"), "SPARK_WORKER_OPTS": pretended_gpu(place, number)}
        size = ["--cores", "1", "--memory", "1536m", "--work-dir", str(folder)]
        daemon(start, folder.with_suffix(".txt"), "worker.Worker", *size, master, **known)
    wait_for("Registering worker", log, 2)
    return master


def pretended_gpu(place: Path, number: int) -> str:
    """A worker's options with a discovery script that names a GPU; CUDA finds none, and the processor scores."""
    script = place / f"gpu-{number}.sh"
    script.write_text(f"""#!/bin/sh\necho '{{"name": "gpu", "addresses": ["{number}"]}}'\n""")
    script.chmod(0o755)
    found = "-Dspark.worker.resource.gpu"
    return f"{found}.amount=1 {found}.discoveryScript={script}"


def daemon(start: Start, told: Path, name: str, *options: str, **known: str) -> None:
    """A daemon of Spark's on a free port of loopback."""
    host = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
    known |= {"SPARK_HOME": str(SPARK), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m", "PYTHONPATH": ""}
    start([str(SPARK / "bin/spark-class"), f"org.apache.spark.deploy.{name}", *host, *options], told, **known)


def wait_for(pattern: str, told: Path, times: int = 1) -> list[str]:
    """What a log says so many times, as soon as it does."""
    until = time.time() + 120
    while len(found := re.findall(pattern, told.read_text())) < times:
        assert time.time() < until, told.read_text()
        time.sleep(0.1)
    return found


def copied(shop: Shop, place: Path, spark: dict[str, Any]) -> Shop:
    """The shop without its lists in a folder of its own, for a session with a master of its own."""
    shutil.copytree(shop.folder, place)
    shutil.rmtree(place / "lake/gold/recommendations", ignore_errors=True)
    return Shop(place, shop.spark, shop.settings | {"spark": {"driver_memory": "2g"} | spark})


def scores(start: Start, shop: Shop) -> subprocess.Popen:
    """The job as a process and its children as a group."""
    return start(job_command(shop, "score_candidates", days=DAYS), shop.folder / "out.txt")


def lists(shop: Shop) -> list[tuple]:
    """The rows but for what names the run; scores as far as they do not depend on the company."""
    rows = shop.rows("gold.recommendations")
    return sorted((r["user_id"], r["rank"], r["item_id"], r["source"], round(r["score"], 5)) for r in rows)


def told(shop: Shop) -> str:
    return (shop.folder / "out.txt").read_text()


def test_executors_of_their_own_give_the_same_lists(
    trained: Shop, wanted: list[tuple], cluster: dict[str, Any], start: Start, tmp_path: Path
):
    spread = copied(trained, tmp_path / "spread", cluster)
    assert scores(start, spread).wait(600) == 0, told(spread)
    assert lists(spread) == wanted


CHAIN = (*LAKE_STEPS, "embed_items", "score_candidates", "publish_recommendations")
SAME = ("bronze.events", "silver.events", "silver.items", "ml.sequences", "ml.item_embeddings", "gold.recommendations")


@pytest.fixture()
def bare_python(tmp_path: Path) -> str:
    """An interpreter with the packages of this environment, and without its link to the checkout."""
    script, packages = tmp_path / "python", sysconfig.get_paths()["purelib"]
    interpreter = Path(sys.base_prefix) / "bin" / "python3"
    script.write_text(f"""#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec {interpreter} "$@"\n""")
    script.chmod(0o755)
    alone = subprocess.run(
        [script, "-c", "import pyspark, lakerec"], env={}, cwd=tmp_path, capture_output=True, text=True
    )
    assert "No module named 'lakerec'" in alone.stderr
    return str(script)


def test_the_chain_of_a_day_runs_on_a_cluster_as_airflow_submits_it(
    trained: Shop, start: Start, bare_python: str, tmp_path: Path
):
    day, window = day_after(DAYS), (str(day_after(DAYS)), str(day_after(DAYS + 1)))
    trained.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(12)])
    trained.deliver(day, [event(n, user=f"u{n % 50}", day=day, item=f"i{n % 12}") for n in range(100)])
    python = {"spark.pyspark.python": bare_python, "spark.pyspark.driver.python": sys.executable}
    master, properties = standalone(start, tmp_path), LOOPBACK | ONE_GPU | python
    spread = copied(trained, tmp_path / "spread", {"master": master, "properties": properties})
    here = copied(trained, tmp_path / "here", {})
    here.run(*CHAIN, start=day)
    state = tmp_path / "state"
    commands = submitted(spread, state)
    assert set(commands) == set(CHAIN)
    for step in CHAIN:
        rendered = {"/etc/lakerec/shop.yaml": str(spread.config.file), **dict(zip(RENDERED, window, strict=True))}
        command = ["env", "--unset=PYTHONPATH", *(rendered.get(word, word) for word in commands[step])]
        assert start(command, spread.folder / "out.txt").wait(300) == 0, told(spread)
    for name in SAME:
        assert comparable(spread, name) == comparable(here, name) != [], name
    assert {row["item_id"] for row in spread.rows("gold.recommendations")} >= {"i10", "i11"}
    logs = "".join(log.read_text() for log in tmp_path.glob("worker-*/app-*/*/stderr"))
    assert logs.count("lakerec.zip") >= len(CHAIN)


RENDERED = ("2024-07-01", "2024-07-02")  # the days of the DAGs as the tests of dags/ render them


def submitted(shop: Shop, state: Path) -> dict[str, list[str]]:
    """The command of each task of reco_daily, its properties written as `make up` writes them."""
    if not PYTHON.exists():
        pytest.skip("no .venv-airflow: run make install")
    environment = os.environ | {"LAKEREC_STATE": str(state), "LAKEREC_HOME": str(ROOT)}
    command = [sys.executable, "-m", "lakerec.cli", "spark-conf", "--config", str(shop.config.file)]
    subprocess.run([*command, "--out", str(state / "spark.conf")], env=environment, check=True)
    known = {
        "LAKEREC_STATE": str(state),
        "LAKEREC_HOME": str(ROOT),
        "AIRFLOW_CONN_SPARK_DEFAULT": connection(shop.config),
    }
    tasks = drive(state / "airflow", "load", **known)["dags"]["reco_daily"]["tasks"]
    return {name: task["command"] for name, task in tasks.items() if "command" in task}


def comparable(shop: Shop, name: str) -> list[str]:
    """A table's rows but for what names the run; numbers as far as they do not depend on the company."""
    rows = [{key: rounded(value) for key, value in row.items() if key != "run_id"} for row in shop.rows(name)]
    return sorted(map(repr, rows))


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def test_a_killed_run_is_taken_up(trained: Shop, wanted: list[tuple], start: Start, tmp_path: Path):
    killed = copied(trained, tmp_path / "killed", {"master": "local[1]"})
    process, until = scores(start, killed), time.time() + 240
    while not list((killed.folder / "lake/_scoring").glob("*/bucket-*.parquet")):
        assert process.poll() is None and time.time() < until, told(killed)
        time.sleep(0.02)
    kill(process)
    assert killed.rows("gold.recommendations") == []
    again = scores(start, killed)
    assert again.wait(300) == 0, told(killed)
    assert "were scored by a run that did not end: their lists are kept" in told(killed)
    assert lists(killed) == wanted and not list((killed.folder / "lake/_scoring").iterdir())


def test_a_task_sees_only_the_gpu_it_was_given(monkeypatch):
    given = SimpleNamespace(resources=lambda: {"gpu": ResourceInformation("gpu", ["3"])})
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "of the machine")
    scoring.own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "of the machine"
    monkeypatch.setattr(scoring.TaskContext, "get", lambda: given)
    scoring.own_gpu()
    assert (os.environ["CUDA_DEVICE_ORDER"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "3")
