"""OpenLineage events of real runs, in a file and at an endpoint; nobody is told where nobody is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import DAY, ROOT, Shop, day_after, event

from lakerec import job as jobs
from lakerec.errors import ConfigError, UsageError
from lakerec.lineage import PARENT, listener, listener_of_run, named, transport
from lakerec.session import JARS, properties, write_properties


def lived(shop: Shop, name: str) -> None:
    jobs.done(shop.job(name), jobs.body(name))


def test_a_run_tells_its_window_tables_and_versions(shop: Shop, monkeypatch):
    monkeypatch.setenv(PARENT, "airflow/reco_daily.conform_events/0190d0a6-1fd5-7e2b-9d6b-000000000001")
    shop.settings["lineage"] = {"file": "lineage.jsonl"}
    shop.deliver(DAY, [event(1)])
    lived(shop, "ingest_events")
    lived(shop, "conform_events")
    events = [json.loads(line) for line in (shop.folder / "lineage.jsonl").read_text().splitlines()]
    assert [(e["job"]["name"], e["eventType"]) for e in events] == [
        ("ingest_events", "START"),
        ("ingest_events", "COMPLETE"),
        ("conform_events", "START"),
        ("conform_events", "COMPLETE"),
    ]
    start, end = events[2:]
    assert start["run"]["runId"] == end["run"]["runId"] != events[0]["run"]["runId"]
    assert end["run"]["facets"]["nominalTime"]["nominalStartTime"].startswith(str(DAY))
    assert end["run"]["facets"]["parent"]["job"]["name"] == "reco_daily.conform_events"
    lake = str(shop.folder / "lake")
    read = {d["name"].removeprefix(lake): d["facets"]["version"]["datasetVersion"] for d in end["inputs"]}
    written = {d["name"].removeprefix(lake): d["facets"]["version"]["datasetVersion"] for d in end["outputs"]}
    assert read["/bronze/events"] == str(shop.version("bronze.events"))
    assert written["/silver/events"] == str(shop.version("silver.events"))
    (silver,) = [d for d in end["outputs"] if d["name"].endswith("/silver/events")]
    assert {"name": "user_id", "type": "STRING"}.items() <= silver["facets"]["schema"]["fields"][2].items()


def test_a_run_that_fails_tells_so_and_an_endpoint_that_is_gone_fails_nothing(shop: Shop, capsys):
    shop.settings["lineage"] = {"file": "lineage.jsonl"}

    def wrong(job: jobs.Job) -> dict[str, Any]:
        raise UsageError("no")

    with pytest.raises(UsageError):
        jobs.done(shop.job("ingest_events"), wrong)
    assert '"FAIL"' in (shop.folder / "lineage.jsonl").read_text().splitlines()[-1]
    shop.settings["lineage"] = {"file": "no/such/folder/lineage.jsonl"}
    assert jobs.done(shop.job("ingest_events"), lambda job: {"read": 1}) == {"read": 1}
    assert "lineage could not be told to" in capsys.readouterr().out


@pytest.fixture()
def endpoint() -> Iterator[tuple[str, list[tuple[str | None, dict[str, Any]]]]]:
    """The URL of an endpoint, and what it got at the path of OpenLineage: the key that came along and the event."""
    got: list[tuple[str | None, dict[str, Any]]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = self.path == "/api/v1/lineage"
            if known:
                got.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(201 if known else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()


def test_an_endpoint_gets_the_events_with_the_key_of_the_environment(shop: Shop, endpoint, monkeypatch):
    url, got = endpoint
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "the-key")
    shop.settings["lineage"] = {"url": url}
    jobs.done(shop.job("ingest_events"), lambda job: {})
    assert [(key, sent["eventType"]) for key, sent in got] == [
        ("Bearer the-key", "START"),
        ("Bearer the-key", "COMPLETE"),
    ]


@pytest.mark.skipif(not any((JARS / "lineage").glob("*.jar")), reason="needs the listener: make install-lineage")
def test_sparks_listener_tells_which_column_was_made_of_which(shop: Shop, endpoint):
    """By spark-submit, as Airflow starts a step; the key and the task are in its environment alone."""
    url, got = endpoint
    shop.settings["lineage"] = {"url": url, "spark": True}
    shop.deliver(DAY, [event(1)])
    write_properties(shop.config, shop.folder / "spark.conf")
    assert "the-key" not in (shop.folder / "spark.conf").read_text()
    parent = "airflow/reco_daily.conform_events/0190d0a6-1fd5-7e2b-9d6b-000000000001"
    known = os.environ | {"OPENLINEAGE_API_KEY": "the-key", PARENT: parent}
    for step in ("ingest_events", "conform_events"):
        script = [str(ROOT / "jobs" / f"{step}.py"), "--config", str(shop.folder / "config.yaml")]
        window = ["--start", str(DAY), "--end", str(day_after(1))]
        submit = [
            str(Path(sys.executable).parent / "spark-submit"),
            "--properties-file",
            str(shop.folder / "spark.conf"),
        ]
        done = subprocess.run([*submit, *script, *window], env=known, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "Query execution is null" not in done.stderr, done.stderr[-3000:]
    assert {key for key, _ in got} == {"Bearer the-key"}
    mine = [sent for _, sent in got if sent["job"]["name"].startswith("conform_events.")]
    assert {sent["run"]["facets"]["parent"]["root"]["job"]["name"] for sent in mine} == {"reco_daily.conform_events"}
    silver = [d for sent in mine for d in sent["outputs"] if d["name"] == str(shop.folder / "lake/silver/events")]
    columns = next(d["facets"]["columnLineage"]["fields"] for d in silver if "columnLineage" in d.get("facets", {}))
    sources = {(one["name"], one["field"]) for one in columns["user_id"]["inputFields"]}
    assert (str(shop.folder / "lake/bronze/events"), "payload") in sources


# Where Python starts the JVM: the properties of a session are on its command line. The listener itself is not needed.
STARTS = """
import re, sys, psutil
from pathlib import Path
from lakerec import lineage, session
from lakerec.config import load_config
session.listener_jars, lineage.listener = lambda config: [], lambda config: {}
spark = session.build_session(load_config(Path(sys.argv[1])), "a run")
lines = [word for one in psutil.Process().children(recursive=True) if one.name() == "java" for word in one.cmdline()]
assert any("spark.driver.memory" in word for word in lines) and not any("the-key" in word for word in lines), lines
assert spark.sparkContext.getConf().get("spark.openlineage.transport.auth.apiKey") == "the-key"
conf = spark.sparkContext.getConf()
assert re.search(conf.get("spark.redaction.regex"), "spark.openlineage.transport.auth.apiKey")
"""


def test_the_key_is_on_no_command_line_where_python_starts_the_jvm(shop: Shop):
    shop.settings["lineage"] = {"url": "https://marquez.example", "spark": True}
    known = os.environ | {"OPENLINEAGE_API_KEY": "the-key"}
    known.pop("PYSPARK_GATEWAY_PORT", None)
    command = [sys.executable, "-c", STARTS, str(shop.config.file)]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_told_by_spark_is_the_yamls_and_no_secret(shop: Shop, monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "the-key")
    assert not listener(shop.config) and not listener_of_run(shop.config)
    shop.settings["lineage"] = {"url": "https://marquez.example", "spark": True}
    assert listener(shop.config)["spark.openlineage.transport.url"] == "https://marquez.example/api/v1/lineage"
    assert "the-key" not in str(listener(shop.config))
    assert listener_of_run(shop.config)["spark.openlineage.transport.auth.apiKey"] == "the-key"
    shop.settings["lineage"] = {"file": "lineage.jsonl", "spark": True}
    place = str(shop.folder / "lineage.jsonl")
    assert listener(shop.config)["spark.openlineage.transport.location"] == place
    assert not listener_of_run(shop.config)
    shop.settings["lineage"] = {"spark": True}
    with pytest.raises(ConfigError, match="a 'file' or a 'url' is expected"):
        _ = shop.config
    shop.settings["lineage"] = {"url": "https://user:hidden@marquez.example"}
    with pytest.raises(ConfigError, match="without user and password") as refused:
        _ = shop.config
    assert "hidden" not in str(refused.value)


def test_a_listener_of_the_yaml_stands_beside_the_one_of_lineage(shop: Shop, monkeypatch):
    monkeypatch.setattr("lakerec.session.jars_of", lambda config: [JARS / "delta.jar"])
    monkeypatch.setattr("lakerec.session.listener_jars", lambda config: [JARS / "lineage" / "ol.jar"])
    shop.settings["lineage"] = {"file": "lineage.jsonl", "spark": True}
    shop.settings["spark"] = {"properties": {"spark.extraListeners": "my.Listener", "spark.jars": "/my.jar"}}
    known = properties(shop.config)
    assert known["spark.extraListeners"] == "io.openlineage.spark.agent.OpenLineageSparkListener,my.Listener"
    assert known["spark.jars"] == f"{JARS / 'lineage' / 'ol.jar'},/my.jar"
    assert known["spark.driver.extraClassPath"] == str(JARS / "delta.jar")


def test_nobody_is_told_where_nobody_is_named(shop: Shop):
    assert transport(shop.config) == {}
    assert named("s3a://shop/lake/gold/recommendations") == ("s3a://shop", "lake/gold/recommendations")
