"""What is written is closed to others, and no password stands in it, in what is printed or in a command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from tests.conftest import DAY, ROOT, Shop, day_after, event

from lakerec import postgres
from lakerec.errors import ConfigError


def open_to_others(folder: Path) -> list[str]:
    """What below a folder others may read or write (to walk through is no reading)."""
    return [str(path) for path in [folder, *folder.rglob("*")] if not path.is_symlink() and path.stat().st_mode & 0o006]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lakerec.cli", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, umask=0o022)


def test_what_a_command_writes_is_closed_to_others(tmp_path: Path):
    done = command("simulate", "--out", tmp_path / "shop", "--start", DAY, "--days", 1, "--users", 20, "--items", 20)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "shop").rglob("*.gz"))) > 2 and open_to_others(tmp_path / "shop") == []


@pytest.mark.long
def test_lake_models_registry_and_servers_files_are_closed_to_others(shop: Shop):
    for n in range(6):
        shop.deliver(day_after(n), [event(100 * n + m, user=f"u{m}", day=day_after(n)) for m in range(9)])
    file = shop.config.file
    done = command("run", "--config", file, "--start", DAY, "--end", day_after(6))
    assert done.returncode == 0, done.stdout + done.stderr
    lake = shop.folder / "lake"
    assert {"_models", "_mlflow", "_dq", "_serving", "gold", "_schema.json"} <= {one.name for one in lake.iterdir()}
    assert open_to_others(lake) == []


def test_no_password_is_printed_written_or_seen_in_a_command_line(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    server = tmp_path / "server"
    uri = postgres.ensure_database(postgres.start(server), "serving")
    parts = urlsplit(uri)
    secret = parts.password or ""
    shop.deliver(DAY, [event(n, user=f"u{n}") for n in range(3)])
    monkeypatch.setenv("LAKEREC_SERVING_URI", uri)
    shop.run("ingest_events", "ingest_catalogue", "conform_events", "conform_catalogue", "score_candidates")
    try:
        seen = " ".join(" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))
        assert shop.run("publish_recommendations")["served"]
        refused = parts._replace(netloc=f"{parts.username}:wrong-{secret}@127.0.0.1:{parts.port}").geturl()
        for bad in (refused, uri.replace("postgresql", "postgresq")):
            monkeypatch.setenv("LAKEREC_SERVING_URI", bad)
            with pytest.raises(ConfigError) as caught:
                shop.run("publish_recommendations")
            assert secret not in str(caught.value)
    finally:
        postgres.stop(server)
    assert "cluster" in seen and secret not in seen
    assert secret not in "".join(capfd.readouterr())
    files = [file for file in (shop.folder / "lake").rglob("*") if file.is_file()]
    assert len(files) > 20 and not [file for file in files if secret.encode() in file.read_bytes()]
    told = [str(row) for name in ("ops.runs", "ops.dq_results") for row in shop.rows(name)]
    assert told and not any(secret in row for row in told)  # compressed, as it is in the files
    assert os.environ["LAKEREC_SERVING_URI"]  # it was there all the time
