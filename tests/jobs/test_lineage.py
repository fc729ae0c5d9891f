"""OpenLineage events of real runs, in a file and at an endpoint; nobody is told where nobody is named."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tests.conftest import DAY, Shop, event

from lakerec import job as jobs
from lakerec.errors import UsageError
from lakerec.lineage import PARENT, named, transport


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


def test_an_endpoint_gets_the_events_with_the_key_of_the_environment(shop: Shop, monkeypatch):
    got: list[tuple[str | None, dict[str, Any]]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "the-key")
    shop.settings["lineage"] = {"url": f"http://127.0.0.1:{server.server_port}"}
    jobs.done(shop.job("ingest_events"), lambda job: {})
    server.shutdown()
    assert [(key, sent["eventType"]) for key, sent in got] == [
        ("Bearer the-key", "START"),
        ("Bearer the-key", "COMPLETE"),
    ]


def test_nobody_is_told_where_nobody_is_named(shop: Shop):
    assert transport(shop.config) == {}
    assert named("s3a://shop/lake/gold/recommendations") == ("s3a://shop", "lake/gold/recommendations")
