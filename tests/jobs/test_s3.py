"""A lake on S3: the chain against a local server, its tables read by another reader, the lease in PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from socket import create_server
from typing import Any

import psycopg
import pytest
from deltalake import DeltaTable
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, day_after, event

from lakerec import postgres, session
from lakerec.errors import LakeBusyError
from lakerec.lake import LOCK_SPACE

MOTO = ROOT / ".venv-moto" / "bin" / "moto_server"
DAYS = 3
LAKE = "s3a://shop/lake"
KEYS = {"AWS_ACCESS_KEY_ID": "of the environment", "AWS_SECRET_ACCESS_KEY": "alone"}
STEPS = (*LAKE_STEPS, "embed_items", "score_candidates", "publish_recommendations")
TABLES = (
    "bronze.events",
    "silver.events",
    "silver.items",
    "ml.sequences",
    "ml.item_embeddings",
    "gold.recommendations",
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (MOTO.exists() and list((session.JARS / "s3").glob("*.jar"))),
        reason="needs Hadoop's S3 client and a local S3 server: run make test-aws",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The URL of a server with an empty bucket `shop`."""
    with closing(create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    with (tmp_path_factory.mktemp("moto") / "log").open("w") as log:
        process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        yield ready(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def ready(url: str, process: subprocess.Popen) -> str:
    """The URL, once a bucket could be made there."""
    for _ in range(300):
        assert process.poll() is None
        try:
            put(f"{url}/shop", b"")
        except OSError:
            time.sleep(0.1)
        else:
            return url
    raise AssertionError("the server does not answer")


def put(url: str, content: bytes) -> None:
    binary = {"Content-Type": "application/octet-stream"}  # without it the server reads the body as a form, for ever
    urllib.request.urlopen(urllib.request.Request(url, content, binary, method="PUT"), timeout=60).close()


@pytest.fixture(scope="module")
def lease_uri(tmp_path_factory) -> Iterator[str]:
    """A real PostgreSQL for the lease."""
    folder = tmp_path_factory.mktemp("lease")
    yield postgres.ensure_database(postgres.start(folder), "lease")
    postgres.stop(folder)


@pytest.fixture(scope="module")
def distant(spark, server: str, lease_uri: str, tmp_path_factory) -> Shop:
    """A shop whose files and tables are on S3, and whose models and lists' database are in a folder."""
    shop = Shop(tmp_path_factory.mktemp("distant"), spark)
    filled(shop)
    for file in (*shop.folder.glob("events/*"), shop.folder / "items.csv.gz"):
        put(f"{server}/shop/files/{file.relative_to(shop.folder)}", file.read_bytes())
        file.unlink()
    sources = shop.settings["sources"]
    for source in sources.values():
        source["path"] = f"s3a://shop/files/{source['path']}"
    s3 = {"endpoint": server, "endpoint.region": "us-east-1", "path.style.access": "true"}
    properties = {f"spark.hadoop.fs.s3a.{key}": value for key, value in s3.items()}
    shop.settings |= {"lake": LAKE, "files": "files", "spark": {"driver_memory": "2g", "properties": properties}}
    shop.settings["lease"] = {"wait_seconds": 0, "uri_env": "LAKEREC_LEASE_URI"}
    return shop


def filled(shop: Shop) -> None:
    """The files of some days."""
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        shop.deliver(day_after(n), [event(50 * n + m, user=f"u{m % 9}", day=day_after(n)) for m in range(50)])


def ran(shop: Shop, lease_uri: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A process with the shop's configuration and S3's credentials in its environment."""
    window = ["--config", str(shop.config.file), "--start", str(DAY), "--end", str(day_after(DAYS))]
    known = os.environ | KEYS | {"LAKEREC_LEASE_URI": lease_uri}
    known.pop("PYSPARK_GATEWAY_PORT", None)
    return subprocess.run([sys.executable, *command, *window], env=known, capture_output=True, text=True, timeout=500)


def rows(server: str, name: str) -> list[dict[str, Any]]:
    """A table's rows by a reader that is not Spark."""
    options = KEYS | {"AWS_ENDPOINT_URL": server, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    uri = f"{LAKE.replace('s3a', 's3')}/{name.replace('.', '/')}"
    return DeltaTable(uri, storage_options=options).to_pyarrow_table().to_pylist()


def comparable(found: list[dict[str, Any]]) -> list[str]:
    """Rows but for what names the run or the file's place."""
    known = [{key: value for key, value in row.items() if key not in ("run_id", "source_file")} for row in found]
    return sorted(map(repr, known))


def test_the_chain_writes_the_same_tables_on_s3_as_on_a_disk(distant, server, lease_uri, spark, tmp_path) -> None:
    here = Shop(tmp_path, spark)
    filled(here)
    here.run(*STEPS, days=DAYS)
    done = ran(distant, lease_uri, "-m", "lakerec.cli", "run", "--train", "never")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TABLES:
        assert comparable(rows(server, name)) == comparable(here.rows(name)) != [], name
    assert {row["status"] for row in rows(server, "ops.runs")} == {"ok"}
    assert {place.name for place in (distant.folder / "files").iterdir()} >= {"_dq", "_serving"}


def test_a_second_writer_waits_for_the_lease(distant, lease_uri) -> None:
    with psycopg.connect(lease_uri, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_SPACE, LAKE))
        done = ran(distant, lease_uri, str(ROOT / "jobs/ingest_events.py"))
    assert done.returncode == LakeBusyError.exit_code, done.stdout + done.stderr
    assert f"the lake {LAKE} is held by another run" in done.stderr
