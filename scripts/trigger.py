"""Run a DAG through Airflow's REST API: trigger, show each task's state, wait for the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

POLL_SECONDS = 2
APPEAR_SECONDS = 120  # a new DAG file appears when the dag-processor has read it
ENDED_BADLY = {"failed", "upstream_failed"}
TAIL_LINES = 30


class Refused(Exception):  # noqa: N818
    """Airflow answered, and said no."""


def main() -> int:
    """Exit code 0 where the run succeeded, 1 where it failed, 2 where it could not be started."""
    options = parse()
    try:
        with connected(options.url, options.passwords) as api:
            wait_until_known(api, options.dag_id)
            was_paused = unpause(api, options.dag_id)
            try:
                run_id = trigger(api, options.dag_id, options.conf)
                return 0 if follow(api, options.dag_id, run_id) else 1
            finally:
                if was_paused:
                    pause_again(api, options.dag_id)
    except Refused as refusal:
        print(f"error: Airflow refuses: {refusal}", file=sys.stderr)
    except (httpx.HTTPError, FileNotFoundError) as error:
        print(f"error: no Airflow at {options.url} ({error}): run make up", file=sys.stderr)
    return 2


def parse() -> argparse.Namespace:
    """The command line; --day is short for --conf '{"day": ...}'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dag_id")
    parser.add_argument("--url", required=True)
    parser.add_argument("--passwords", type=Path, required=True)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--conf", type=json.loads, default={}, help="the run's parameters as JSON")
    what.add_argument("--day", dest="conf", type=lambda day: {"day": day}, help="the day to rebuild, 2024-03-01")
    return parser.parse_args()


def connected(url: str, passwords: Path) -> httpx.Client:
    """A client of the REST API, logged in as admin."""
    login = {"username": "admin", "password": json.loads(passwords.read_text())["admin"]}
    token = checked(httpx.post(f"{url}/auth/token", json=login, timeout=30))["access_token"]
    return httpx.Client(base_url=f"{url}/api/v2", headers={"Authorization": f"Bearer {token}"}, timeout=60)


def checked(response: httpx.Response) -> Any:
    """The answer's JSON; raises Refused with what Airflow says is wrong."""
    if response.is_error:
        raise Refused(f"{response.status_code} for {response.request.url.path}: {response.text[:500]}")
    return response.json()


def wait_until_known(api: httpx.Client, dag_id: str) -> None:
    """Wait for the dag-processor to have read the DAG."""
    deadline = time.monotonic() + APPEAR_SECONDS
    while (answer := api.get(f"/dags/{dag_id}")).status_code == 404 and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    checked(answer)


def unpause(api: httpx.Client, dag_id: str) -> bool:
    """Whether the DAG was paused: nothing runs in one that is."""
    was_paused = bool(checked(api.get(f"/dags/{dag_id}"))["is_paused"])
    if was_paused:
        print(f"{dag_id} is paused: it goes on, its schedule as well, and is paused again behind this run", flush=True)
        checked(api.patch(f"/dags/{dag_id}", json={"is_paused": False}))
    return was_paused


def pause_again(api: httpx.Client, dag_id: str) -> None:
    """Pause a DAG that was paused, unless that would stop another run half-way; says which."""
    try:
        active = checked(api.get(f"/dags/{dag_id}/dagRuns", params={"state": ["queued", "running"], "limit": 1}))
        if active["total_entries"]:
            print(f"{dag_id} is not paused again: another run of it is on its way", flush=True)
        else:
            checked(api.patch(f"/dags/{dag_id}", json={"is_paused": True}))
    except (Refused, httpx.HTTPError) as error:
        print(f"{dag_id} could not be paused again: {error}", file=sys.stderr)


def trigger(api: httpx.Client, dag_id: str, conf: dict[str, Any]) -> str:
    """Start a run without a logical date, so that a day can be rebuilt any number of times; its id."""
    run = checked(api.post(f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf}))
    print(f"{dag_id}: {run['dag_run_id']} {json.dumps(conf)}", flush=True)
    return str(run["dag_run_id"])


def follow(api: httpx.Client, dag_id: str, run_id: str) -> bool:
    """Print each change of a task's state until the run ends, then what failed; whether it succeeded."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}"
    shown: dict[tuple[str, int], str | None] = {}
    began = time.monotonic()
    while True:
        state = checked(api.get(path))["state"]
        tasks = all_tasks(api, path)
        for one in tasks:
            show_change(one, shown, time.monotonic() - began)
        if state in {"success", "failed"}:
            break
        time.sleep(POLL_SECONDS)
    bad = [one for one in tasks if one["state"] in ENDED_BADLY]
    for one in bad:
        if one["state"] == "failed":
            show_log(api, path, one)
    good = state == "success" and not bad  # a run may be failed by hand, none of whose tasks is
    print(f"{dag_id}: {'success' if good else 'failed'} after {time.monotonic() - began:.0f} s", flush=True)
    return good


def all_tasks(api: httpx.Client, path: str) -> list[dict[str, Any]]:
    """Every task instance of a run, by pages: Airflow gives 100 at a time, whatever is asked for."""
    found: list[dict[str, Any]] = []
    while True:
        page = checked(api.get(f"{path}/taskInstances", params={"limit": 100, "offset": len(found)}))
        found += page["task_instances"]
        if len(found) >= page["total_entries"] or not page["task_instances"]:
            return found


def show_change(one: dict[str, Any], shown: dict[tuple[str, int], str | None], seconds: float) -> None:
    """One line for a task whose state is another than shown; states of waiting are left out."""
    key = (one["task_id"], one["map_index"])
    state = one["state"]
    if state in {None, "scheduled", "queued"} or shown.get(key) == state:
        return
    shown[key] = state
    chunk = f"[{one['map_index']}]" if one["map_index"] >= 0 else ""
    print(f"{seconds:6.0f} s  {state:16}{one['task_id']}{chunk}", flush=True)


def show_log(api: httpx.Client, path: str, one: dict[str, Any]) -> None:
    """The last lines of a task's last try."""
    index = {"map_index": one["map_index"]}
    answer = checked(api.get(f"{path}/taskInstances/{one['task_id']}/logs/{one['try_number']}", params=index))
    lines = [line for entry in answer["content"] for line in log_lines(entry)]
    print(f"--- the last lines of {one['task_id']}, try {one['try_number']}:", *lines[-TAIL_LINES:], sep="\n")


def log_lines(entry: dict[str, Any]) -> list[str]:
    """The lines of a log entry: none for its folding marks; an exception without its frames."""
    if entry["event"].startswith("::"):
        return []
    errors = [error["exc_value"] for error in entry.get("error_detail") or []]
    return [line for text in (entry["event"], *errors[:1]) for line in text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
