"""Run a DAG through Airflow's REST API: trigger, show each task's state, wait for the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

POLL_SECONDS = 2
APPEAR_SECONDS = 120  # a new DAG file appears when the dag-processor has read it
PATIENCE_SECONDS = 600  # an API server that is started anew, or has no core to itself, answers again
ENDED_BADLY = {"failed", "upstream_failed"}
TAIL_LINES = 30


UNSEEN = 3


class Refused(Exception):  # noqa: N818
    """Airflow answered, and said no."""


class Unknown(Exception):  # noqa: N818
    """Airflow was asked for a run, and did not say whether there is one."""


class Login(httpx.Auth):
    """Airflow's token, fetched anew where it has ended: one lasts a day, a training may take two."""

    requires_response_body = True

    def __init__(self, url: str, passwords: Path) -> None:
        self.url, self.passwords, self.token = url, passwords, ""

    def request(self) -> httpx.Request:
        """What asks for a token as admin."""
        login = {"username": "admin", "password": json.loads(self.passwords.read_text())["admin"]}
        return httpx.Request("POST", f"{self.url}/auth/token", json=login)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The request, and once more with a new token where the old one is refused."""
        request.headers["Authorization"] = f"Bearer {self.token}"
        answer = yield request
        if answer.status_code in (401, 403):  # has ended; was signed with the key of before
            answer = yield self.request()
            if not answer.is_error:  # else it is the answer
                self.token = answer.json()["access_token"]
                request.headers["Authorization"] = f"Bearer {self.token}"
                yield request


class Api(httpx.Client):
    """The REST API as admin."""

    def __init__(self, login: Login, patience: float) -> None:
        super().__init__(base_url=f"{login.url}/api/v2", auth=login, timeout=60)
        self.patience = patience

    def ask(self, path: str, **params: Any) -> httpx.Response:
        """A GET, which is sent again for so many seconds where no answer comes, or one of a server in trouble."""
        until, told = time.monotonic() + self.patience, False
        while True:
            try:
                answer = self.get(path, params=params)
                if answer.status_code < 500 or time.monotonic() >= until:
                    return answer
                trouble = str(answer.status_code)
            except httpx.HTTPError as error:
                if time.monotonic() >= until:
                    raise
                trouble = said(error)
            if not told:
                print(f"Airflow does not answer ({trouble}): asking again", file=sys.stderr, flush=True)
                told = True
            time.sleep(POLL_SECONDS)


def main() -> int:
    """Exit code 0: the run succeeded; 1: it failed; 2: it could not be started; 3: it goes on unseen."""
    options = parse()
    try:
        with connected(options.url, options.passwords, options.patience) as api:
            wait_until_known(api, options.dag_id)
            was_paused = unpause(api, options.dag_id)
            try:
                run_id = trigger(api, options.dag_id, options.conf)
                return followed(api, options.dag_id, run_id, options.url)
            finally:
                if was_paused:
                    pause_again(api, options.dag_id)
    except Unknown as unknown:
        place = f"{options.url}/dags/{options.dag_id}/runs"
        print(f"error: whether a run was started is not known ({unknown}): look at {place}", file=sys.stderr)
        return UNSEEN
    except Refused as refusal:
        print(f"error: Airflow refuses: {refusal}", file=sys.stderr)
    except (httpx.HTTPError, FileNotFoundError) as error:
        print(f"error: no Airflow at {options.url} ({said(error)}): run make up", file=sys.stderr)
    return 2


def parse() -> argparse.Namespace:
    """The command line; --day is short for --conf '{"day": ...}'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dag_id")
    parser.add_argument("--url", required=True)
    parser.add_argument("--passwords", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, help="seconds to wait for an answer")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--conf", type=json.loads, default={}, help="the run's parameters as JSON")
    what.add_argument("--day", dest="conf", type=lambda day: {"day": day}, help="the day to rebuild, 2024-03-01")
    return parser.parse_args()


def connected(url: str, passwords: Path, patience: float) -> Api:
    """A client of the REST API, logged in as admin; raises at once where there is no Airflow."""
    login = Login(url, passwords)
    with httpx.Client(timeout=30) as first:
        login.token = checked(first.send(login.request()))["access_token"]
    return Api(login, patience)


def said(error: Exception) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


def checked(response: httpx.Response) -> Any:
    """The answer's JSON; raises Refused with what Airflow says is wrong."""
    if response.is_error:
        raise Refused(f"{response.status_code} for {response.request.url.path}: {response.text[:500]}")
    return response.json()


def wait_until_known(api: Api, dag_id: str) -> None:
    """Wait for the dag-processor to have read the DAG."""
    deadline = time.monotonic() + APPEAR_SECONDS
    while (answer := api.ask(f"/dags/{dag_id}")).status_code == 404 and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    checked(answer)


def unpause(api: Api, dag_id: str) -> bool:
    """Whether the DAG was paused: nothing runs in one that is."""
    was_paused = bool(checked(api.ask(f"/dags/{dag_id}"))["is_paused"])
    if was_paused:
        print(f"{dag_id} is paused: it goes on, its schedule as well, and is paused again behind this run", flush=True)
        checked(api.patch(f"/dags/{dag_id}", json={"is_paused": False}))
    return was_paused


def pause_again(api: Api, dag_id: str) -> None:
    """Pause a DAG that was paused, unless that would stop another run half-way; says which."""
    try:
        active = checked(api.get(f"/dags/{dag_id}/dagRuns", params={"state": ["queued", "running"], "limit": 1}))
        if active["total_entries"]:
            print(f"{dag_id} is not paused again: a run of it is on its way", flush=True)
        else:
            checked(api.patch(f"/dags/{dag_id}", json={"is_paused": True}))
    except (Refused, httpx.HTTPError) as error:
        print(f"{dag_id} could not be paused again: {error}", file=sys.stderr)


def trigger(api: Api, dag_id: str, conf: dict[str, Any]) -> str:
    """Start a run without a logical date, so that a day can be rebuilt any number of times; its id."""
    try:
        answer = api.post(f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})
    except httpx.ConnectError:  # nothing was asked
        raise
    except httpx.HTTPError as error:
        raise Unknown(said(error)) from error
    run = checked(answer)
    print(f"{dag_id}: {run['dag_run_id']} {json.dumps(conf)}", flush=True)
    return str(run["dag_run_id"])


def followed(api: Api, dag_id: str, run_id: str, url: str) -> int:
    """The exit code of a run that was triggered; UNSEEN, with the place to look, where Airflow no longer tells."""
    try:
        return 0 if follow(api, dag_id, run_id) else 1
    except (Refused, httpx.HTTPError) as error:
        place = f"{url}/dags/{dag_id}/runs/{quote(run_id)}"
        print(f"error: run {run_id} goes on; Airflow no longer tells ({said(error)}): look at {place}", file=sys.stderr)
        return UNSEEN


def follow(api: Api, dag_id: str, run_id: str) -> bool:
    """Print each change of a task's state until the run ends, then what failed; whether it succeeded."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}"
    shown: dict[tuple[str, int], str | None] = {}
    began = time.monotonic()
    while True:
        state = checked(api.ask(path))["state"]
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


def all_tasks(api: Api, path: str) -> list[dict[str, Any]]:
    """Every task instance of a run, by pages: Airflow gives 100 at a time, whatever is asked for."""
    found: list[dict[str, Any]] = []
    while True:
        page = checked(api.ask(f"{path}/taskInstances", limit=100, offset=len(found)))
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


def show_log(api: Api, path: str, one: dict[str, Any]) -> None:
    """The last lines of a task's last try, or why there are none: how the run ended is known all the same."""
    place = f"{path}/taskInstances/{one['task_id']}/logs/{one['try_number']}"
    try:
        answer = checked(api.ask(place, map_index=one["map_index"]))
    except (Refused, httpx.HTTPError) as error:
        print(f"--- the log of {one['task_id']}, try {one['try_number']}, cannot be read: {said(error)}")
        return
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
