"""The warm driver, by real processes: steps in one session, exit codes, a killed client, a changed configuration."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.conftest import DAY, Shop, day_after, event

from lakerec import warm
from lakerec.errors import ConfigError
from lakerec.lake import file_lease
from lakerec.warm import Place, connected, fingerprint


@pytest.fixture(scope="module")
def home(tmp_path_factory, spark) -> Iterator[Shop]:
    """A shop, and the state folder of its driver beside it; whatever the tests do, the driver ends with them."""
    shop = Shop(tmp_path_factory.mktemp("warm"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    shop.settings["spark"] = {"driver_memory": "1g", "properties": {"spark.sql.shuffle.partitions": "2"}}
    shop.settings["lease"] = {"wait_seconds": 30}  # `held` takes it for an instant
    shop.deliver(DAY, [event(1), event(2)])
    assert shop.config
    yield shop
    client(shop, "stop").wait(timeout=60)


def client(shop: Shop, command: str, *step: str) -> subprocess.Popen:
    """A client of the driver, as an Airflow task starts it."""
    known = {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}
    known["LAKEREC_TASK"] = f"{shop.folder}:{' '.join(step[:1])}"
    words = [sys.executable, "-m", "lakerec.warm", command, "--state", str(shop.folder), *step]
    return subprocess.Popen(words, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def step(shop: Shop, name: str, day=DAY) -> subprocess.Popen:
    """A step over one day."""
    window = ["--start", str(day), "--end", str(day_after((day - DAY).days + 1))]
    return client(shop, "step", name, "--config", str(shop.folder / "config.yaml"), *window)


def told(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and output."""
    text = process.communicate(timeout=180)[0]
    return process.returncode, text


def test_a_state_folder_of_another_user_is_told_and_not_tried_again(shop: Shop, monkeypatch, capsys):
    def started(place: Place, _):
        raise PermissionError(errno.EACCES, "Permission denied", str(place.log))

    monkeypatch.setattr(warm, "started", started)
    file = str(shop.config.file)
    assert warm.main(["step", "--state", str(shop.folder), "ingest_events", "--config", file]) == ConfigError.exit_code
    assert f"ConfigError: {shop.folder}/warm.log: permission denied" in capsys.readouterr().err


def drivers(shop: Shop) -> set[int]:
    """The process ids of the drivers of this state folder."""
    words = ["serve", "--state", str(shop.folder)]
    return {p.pid for p in psutil.process_iter(["cmdline"]) if all(w in (p.info["cmdline"] or []) for w in words)}


def marked(shop: Shop, name: str) -> list[psutil.Process]:
    """The processes that end with the task of a step."""
    task = f"{shop.folder}:{name}"
    return [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("LAKEREC_TASK") == task]


def test_steps_share_a_driver_and_end_with_their_own_output_and_exit_code(home: Shop):
    code, first = told(step(home, "ingest_events"))
    assert code == 0 and "Spark is up" in first and "read 2" in first
    (driver,) = drivers(home)
    assert not marked(home, "ingest_events")  # the task that is cleared leaves the driver to others
    code, second = told(step(home, "conform_events"))
    assert code == 0 and "Spark is up" not in second and "written 2" in second
    code, refused = told(client(home, "step", "ingest_events", "--config", str(home.folder / "config.yaml"),
                                "--start", "2026-03-02", "--end", "2026-03-02"))  # fmt: skip
    assert code == 16 and "the end is excluded" in refused
    assert drivers(home) == {driver}
    assert len(home.rows("silver.events")) == 2


def test_a_killed_client_ends_the_step_and_the_driver_and_frees_the_lease(home: Shop):
    home.deliver(day_after(1), [event(n, day=day_after(1)) for n in range(20000)])
    before = home.version("bronze.events")
    running = step(home, "ingest_events", day_after(1))
    (driver,) = drivers(home)
    wait_for(lambda: "ingest_events" in (home.folder / "lake" / "_lease").read_text() and held(home))
    (ended,) = marked(home, "ingest_events")  # all that clearing the task would end
    assert ended.pid == running.pid
    ended.kill()
    wait_for(lambda: not psutil.pid_exists(driver))
    assert home.version("bronze.events") in (before, before + 1)
    code, again = told(step(home, "ingest_events", day_after(1)))
    assert code == 0 and "read 20000" in again
    assert len(home.rows("bronze.events")) == 20002


def test_a_driver_whose_jvm_hangs_ends_with_its_client_too(home: Shop):
    assert told(step(home, "ingest_events"))[0] == 0
    (driver,) = drivers(home)
    (jvm,) = [child for child in psutil.Process(driver).children(recursive=True) if "java" in child.name()]
    jvm.suspend()
    running = step(home, "ingest_events")
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(2)
    running.kill()
    wait_for(lambda: not psutil.pid_exists(driver) and not jvm.is_running())


def test_a_client_that_dies_with_output_unread_takes_the_driver_along(home: Shop):
    assert told(client(home, "stop"))[0] == 0
    config, lake = home.folder / "config.yaml", home.folder / "lake"
    argv = ["ingest_events", "--config", str(config), "--start", str(DAY), "--end", str(day_after(1))]
    with file_lease(lake, "another", "run", 0), connected(Place(home.folder), config) as line:
        asked = {"argv": argv, "print": fingerprint(config), "attempt": {}}
        line.sendall(json.dumps(asked).encode() + b"\n")
        assert select.select([line], [], [], 90)[0], "the driver has said nothing"
        (driver,) = drivers(home)
        line.close()
        wait_for(lambda: driver not in drivers(home))


@pytest.mark.faults
def test_who_waits_for_a_driver_that_dies_is_served_by_another_one(home: Shop):
    """As Airflow's next try, or another task, finds a driver whose client was killed."""
    assert told(step(home, "ingest_events"))[0] == 0
    (driver,) = drivers(home)
    with file_lease(home.folder / "lake", "another", "run", 0):
        running = step(home, "ingest_events")
        wait_for(lambda: connections(running))
        time.sleep(1)  # the driver has taken its step, which waits for the lease
        waiting = step(home, "conform_events")
        wait_for(lambda: connections(waiting))
        running.kill()
        wait_for(lambda: driver not in drivers(home))
    code, text = told(waiting)
    assert code == 0 and "Spark is up" in text, text


def connections(process: subprocess.Popen) -> list:
    """A client's lines to drivers."""
    return psutil.Process(process.pid).net_connections("unix")


class Drivers:
    """Stand-ins for drivers: each says its words to one client, and dies."""

    def __init__(self, place: Place, *words: bytes) -> None:
        self.place, self.words, self.steps = place, list(words), 0

    def start(self, *_: object) -> Any:
        """The next one, which listens once this returns."""
        self.place.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.place.socket))
        listener.listen()
        threading.Thread(target=self.serve, args=(listener, self.words.pop(0)), daemon=True).start()
        return Namespace(poll=lambda: None)

    def serve(self, listener: socket.socket, words: bytes) -> None:
        with listener, listener.accept()[0] as line:
            line.makefile("rb").readline()
            self.steps += warm.TAKEN.encode() in words
            listener.close()
            line.sendall(words)


@pytest.mark.parametrize(
    ("words", "code", "steps"),
    [
        ([b"", b"\0taken\n\0exit 0\n"], 0, 1),
        ([b"", b"\0other\n", b"\0taken\nread 2\n\0exit 16\n"], 16, 1),
        ([b"\0taken\n", b"\0taken\n\0exit 0\n"], 1, 1),  # it may have written: Airflow's next try looks at the lake
        ([b"\0taken\nread 2\n", b"\0taken\n\0exit 0\n"], 1, 1),
        ([b"", b"", b"", b"\0taken\n\0exit 0\n"], 1, 0),
    ],
    ids=["it dies first", "it dies first, then another state", "it dies behind the word", "in the middle", "all die"],
)
def test_a_step_goes_to_another_driver_only_if_it_cannot_have_begun(
    tmp_path: Path, monkeypatch, words: list[bytes], code: int, steps: int
):
    (tmp_path / "config.yaml").write_text("lake: lake\n")
    place = Place(tmp_path)
    known = Drivers(place, *words)
    monkeypatch.setattr(warm, "started", known.start)
    assert warm.step(place, ["ingest_events", "--config", str(tmp_path / "config.yaml")]) == code
    assert known.steps == steps
    place.socket.unlink()


def test_a_driver_is_of_the_variables_that_its_yaml_names(tmp_path: Path, monkeypatch):
    config = tmp_path / "shop.yaml"
    config.write_text("serving: {uri_env: SHOP_DB}\nprivacy:\n  key_env: 'SHOP_KEY'\n")
    found = {fingerprint(config)}
    for name in ("SHOP_DB", "SHOP_KEY", "LAKEREC_ANY"):
        monkeypatch.setenv(name, "rotated")
        found.add(fingerprint(config))
    assert len(found) == 4
    monkeypatch.setenv("ANOTHER", "x")
    assert fingerprint(config) in found


@pytest.mark.long
def test_a_driver_whose_jvm_has_died_gives_way_to_a_new_one(home: Shop):
    assert told(step(home, "ingest_events"))[0] == 0
    (driver,) = drivers(home)
    (jvm,) = [child for child in psutil.Process(driver).children(recursive=True) if "java" in child.name()]
    jvm.kill()
    code, text = told(step(home, "ingest_events"))
    assert code in (1, 24), text
    wait_for(lambda: driver not in drivers(home))
    code, text = told(step(home, "ingest_events"))
    assert code == 0 and "Spark is up" in text


def held(shop: Shop) -> bool:
    """Whether a process holds the lake's lease now."""
    import fcntl

    with (shop.folder / "lake" / "_lease").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@pytest.mark.long
def test_a_changed_configuration_gets_a_new_driver_and_a_wrong_one_its_message(home: Shop):
    assert told(step(home, "build_sequences"))[0] == 0
    (old,) = drivers(home)
    home.settings["sequence"] = {"length": 3}
    assert home.config
    assert told(step(home, "build_sequences"))[0] == 0
    (new,) = drivers(home)
    assert new != old
    (home.folder / "config.yaml").write_text((home.folder / "config.yaml").read_text().replace("lake: lake", "lak: l"))
    code, text = told(step(home, "build_sequences"))
    assert code == 10 and "did you mean 'lake'" in text


def test_the_socket_is_the_users_alone(tmp_path: Path):
    assert Place(tmp_path).folder.stat().st_mode & 0o077 == 0
    assert len(str(Place(tmp_path / ("deep/" * 60)).socket)) < 100


def wait_for(true, seconds: float = 60) -> None:
    """Wait until it holds; fails the test if it does not."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
