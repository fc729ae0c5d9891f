"""The command line: lakerec run | simulate | recommend | metrics | runs | explain-run | rollback | spark-conf.

And for who keeps the lake: migrate | restore | backup | restore-lake | export; for a cluster: package.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakerec import faults
from lakerec.config import Config, load_config
from lakerec.errors import UsageError
from lakerec.job import (
    LAKE_STEPS,
    SERVING_STEPS,
    STEPS,
    TRAINING_STEPS,
    arguments,
    begun,
    body,
    check_expressions,
    command,
    done,
    give_back,
    guarded,
    import_ahead,
    parse_window,
    private,
    start,
    window_of,
)
from lakerec.lake import Window
from lakerec.lineage import as_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run one command; a known error is one message and its exit code."""
    given = _parser().parse_args(argv)
    private()
    sys.exit(guarded(lambda: given.command(given)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lakerec", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = arguments(_command(commands, "run", run_chain, "the whole chain in one process and one Spark session"))
    run.add_argument("--until", help="stop after this step", metavar="STEP")
    run.add_argument("--train", choices=("auto", "always", "never"), default="auto", help="auto: if no model serves")
    simulate = _command(commands, "simulate", simulate_stream, "write a deterministic clickstream")
    simulate.add_argument("--out", required=True, type=Path)
    simulate.add_argument("--start", required=True)
    for name, default in (("days", 15), ("users", 300), ("items", 200), ("seed", 7)):
        simulate.add_argument(f"--{name}", type=int, default=default)
    recommend = _command(commands, "recommend", recommend_user, "a user's recent events and list")
    _lake_options(recommend)
    recommend.add_argument("--user", help="the user; without it one with a long list of events")
    recommend.add_argument("--query", help="a text instead of a user: the items that fit it, best first")
    _lake_options(_command(commands, "metrics", show_figures, "the last evaluation: models beside baselines"))
    runs = _command(commands, "runs", list_runs, "the newest runs: job, window, status, counts, seconds")
    _lake_options(runs)
    runs.add_argument("--job", help="only this job's")
    runs.add_argument("--count", type=int, default=20, help="so many (20)")
    explain = _command(
        commands, "explain-run", explain_run, "what one run read, with which code and settings, and wrote"
    )
    _lake_options(explain)
    explain.add_argument("run_id", metavar="RUN_ID")
    rollback = _command(commands, "rollback", roll_back, "let an earlier model serve again")
    _lake_options(rollback)
    rollback.add_argument("--to", "--version", required=True, dest="version", metavar="VERSION")
    rollback.add_argument("--day", help="first day it serves again, YYYY-MM-DD; else that of the lists now served")
    conf = _command(commands, "spark-conf", write_spark_conf, "the properties file for spark-submit")
    _lake_options(conf)
    what = conf.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="write the file")
    what.add_argument("--timezone", action="store_true", help="only print the deployment's time zone")
    what.add_argument(
        "--lineage", action="store_true", help="only print where OpenLineage events go, as Airflow's JSON"
    )
    what.add_argument("--connection", action="store_true", help="only print Airflow's Spark connection as JSON")
    package = _command(commands, "package", write_zip, "the package as a zip for spark-submit --py-files")
    package.add_argument("--out", required=True, type=Path, help="write the file")
    _keeping(commands)
    return parser


def _keeping(commands: Any) -> None:
    """The commands of who keeps the lake."""
    _lake_options(_command(commands, "migrate", migrate_lake, "bring an older release's tables to this one's columns"))
    back = _command(commands, "restore", restore_table, "an earlier version of one table, and what to rebuild")
    _lake_options(back)
    back.add_argument("table", metavar="TABLE", help="its name, as silver.events")
    which = back.add_mutually_exclusive_group(required=True)
    which.add_argument("--version", type=int, metavar="N")
    which.add_argument("--day", help="the last version of this day, YYYY-MM-DD")
    backup = _command(commands, "backup", back_up_lake, "write a backup of the whole lake")
    _lake_options(backup)
    backup.add_argument("--to", required=True, type=Path, metavar="DIR", dest="folder", help="where backups lie")
    whole = _command(commands, "restore-lake", restore_whole_lake, "fill an empty lake from a backup")
    _lake_options(whole)
    whole.add_argument("--from", required=True, type=Path, metavar="DIR", dest="folder", help="where backups lie")
    whole.add_argument("--at", metavar="NAME", help="the backup's name (the newest)")
    export = _command(commands, "export", export_table, "a table as one file: CSV, JSON lines or Parquet")
    _lake_options(export)
    export.add_argument("--table", required=True, help="its name, as gold.recommendations")
    export.add_argument("--out", required=True, type=Path, metavar="FILE")
    export.add_argument("--format", choices=("csv", "json", "parquet"), help="by FILE's ending unless said")
    for name, told in (("--start", "first day"), ("--end", "day behind the last")):
        export.add_argument(name, help=f"{told} of a table with days, YYYY-MM-DD")


def _command(commands: Any, name: str, action: Callable[..., None], told: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=action.__doc__)
    parser.set_defaults(command=action)
    return parser


def _lake_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, type=Path, help="the deployment's YAML")
    parser.add_argument("--lake", help="overrides the configuration's lake")


@contextmanager
def _session(config: Config, name: str, days: int = 1) -> Iterator[SparkSession]:
    from lakerec.session import build_session

    with faults.told(config):
        spark = build_session(config, name, days)
        try:
            yield spark
        finally:
            spark.stop()


def run_chain(given: argparse.Namespace) -> None:
    """Ingest, conform, build, train if asked, score and publish a window; print the time of each step."""
    config = load_config(given.config, given.lake)
    window = window_of(config, given)
    if given.until and given.until not in STEPS:
        raise UsageError(f"--until {given.until}: no such step; steps are {', '.join(STEPS)}")
    from lakerec.sources import check_headers

    began = time.monotonic()
    import_ahead("great_expectations")
    with _session(config, "lakerec run", window.days) as spark:
        check_expressions(config, spark)
        check_headers(spark, config, window)
        seconds = {"spark_start": time.monotonic() - began}
        for step in STEPS:
            job = start(config, spark, step, window, every_day=given.every_day)
            if step not in TRAINING_STEPS or _trains(job, given.train):
                seconds[step] = _timed(job, step)
            if step == given.until:
                break
    print("\nseconds per step\n" + "\n".join(f"  {name:24s}{value:8.1f}" for name, value in seconds.items()))
    print(f"  {'total':24s}{time.monotonic() - began:8.1f}\nlake: {config.lake}")


def _timed(job: Any, step: str) -> float:
    began = time.monotonic()
    counts = done(job, body(step))
    give_back()
    took = time.monotonic() - began
    job.say(", ".join(f"{k} {v}" for k, v in counts.items()) + f" ({took:.1f} s)")
    return took


def _trains(job: Any, wish: str) -> bool:
    """Whether the training steps run: `auto` until ml.promotions names a model (the steps go together)."""
    from lakerec import models

    if wish != "auto":
        return wish == "always"
    return models.serving(job.lake, job.last_day) is None


def simulate_stream(given: argparse.Namespace) -> None:
    """Write events, items, users and a knowledge graph with planted preferences and planted dirt."""
    from lakerec.simulator import simulate

    try:
        first = date.fromisoformat(given.start)
    except ValueError as error:
        raise UsageError(f"--start is a day as YYYY-MM-DD: {error}") from None
    summary = simulate(given.out, first, given.days, given.users, given.items, given.seed)
    told = ", ".join(f"{name} {value}" for name, value in vars(summary.total).items() if value)
    print(f"{given.out}: {given.days} days from {first}: {told}")


def recommend_user(given: argparse.Namespace) -> None:
    """Print a user's recent events and the list they are served, or the items that fit a query."""
    from lakerec.show import show_query, show_user

    if given.user and given.query:
        raise UsageError("--user and --query exclude each other: a list is for a user or for a text")
    config = load_config(given.config, given.lake)
    with _session(config, "lakerec recommend") as spark:
        if given.query:
            show_query(config, spark, given.query)
        else:
            show_user(config, spark, given.user)


def show_figures(given: argparse.Namespace) -> None:
    """Print the last evaluation: challenger, champion and baselines on the same users."""
    from lakerec.show import show_metrics

    config = load_config(given.config, given.lake)
    with _session(config, "lakerec metrics") as spark:
        show_metrics(config, spark)


def list_runs(given: argparse.Namespace) -> None:
    """Print the newest runs of the ledger."""
    from lakerec.ledger import show_runs

    config = load_config(given.config, given.lake)
    if given.count < 1:
        raise UsageError(f"--count {given.count}: how many of the newest runs, 1 or more")
    with _session(config, "lakerec runs") as spark:
        show_runs(config, spark, given.job, given.count)


def explain_run(given: argparse.Namespace) -> None:
    """Print all that it takes to make a run's rows again."""
    from lakerec.ledger import show_run

    config = load_config(given.config, given.lake)
    with _session(config, "lakerec explain-run") as spark:
        show_run(config, spark, given.run_id)


def roll_back(given: argparse.Namespace) -> None:
    """Append an earlier version to ml.promotions: it serves from the given day on."""
    config = load_config(given.config, given.lake)
    asked = _day(given.day) if given.day else None
    os.environ["LAKEREC_ROLLBACK_TO"] = given.version
    import_ahead("mlflow")
    with _session(config, "lakerec rollback") as spark:
        day = asked or _rollback_day(config, spark)
        window = begun(config, Window(day, day + timedelta(days=1)))
        done(start(config, spark, "rollback_scorer", window), body("rollback_scorer"))
    print(f"{given.version} serves from {day} on; score and publish that day to show its lists")


def _rollback_day(config: Config, spark: SparkSession) -> date:
    from lakerec import models

    known = models.rollback_day(start(config, spark, "rollback", _today()).lake)
    if known is None:
        raise UsageError("the lake has neither lists nor a promotion: say with --day from when on the version serves")
    return known


def migrate_lake(given: argparse.Namespace) -> None:
    """Bring every table to this release's DDL, as the next job would do by itself."""
    config = load_config(given.config, given.lake)
    with _session(config, "lakerec migrate") as spark:
        lake = start(config, spark, "migrate", _today()).lake
        with lake.lease() as done:
            pass
    print("\n".join(f"{name}: {told}" for name, told in done.items()) or "every table is as this release has it")


def restore_table(given: argparse.Namespace) -> None:
    """Let one table have an earlier version's rows again; print what was made from it and has to be rebuilt."""
    from lakerec.restore import restore

    config = load_config(given.config, given.lake)
    day = _day(given.day) if given.day else None
    with _session(config, "lakerec restore") as spark:
        job = start(config, spark, "restore", _today())
        print(restore(job, given.table, given.version, day, (*LAKE_STEPS, *SERVING_STEPS)))


def back_up_lake(given: argparse.Namespace) -> None:
    """Write a backup of tables, models and registry; files that the last backup has are linked, not copied."""
    from lakerec.backup import back_up

    config = load_config(given.config, given.lake)
    with faults.told(config):
        place, made, copied = back_up(config, given.folder, f"backup-{os.getpid()}")
    print(f"{place}: {len(made.tables)} tables, {len(made.files)} files, {copied} of them new")


def restore_whole_lake(given: argparse.Namespace) -> None:
    """Fill an empty lake from a backup, each file checked by its hash; then publish its last day."""
    from lakerec.backup import last_lists, restore_lake

    config = load_config(given.config, given.lake)
    with faults.told(config):
        place, made = restore_lake(config, given.folder, given.at)
    print(f"{config.lake} is as of {made.taken_at} ({place.name})")
    if day := last_lists(config, made):
        print("to publish its last lists, unless the site has later ones")
        print(f"  {command(config, 'publish_recommendations', day, day + timedelta(days=1))}")


def export_table(given: argparse.Namespace) -> None:
    """Write a table, or its days from --start to --end, as one file for whoever is outside the lake."""
    from lakerec.export import KINDS, export

    config = load_config(given.config, given.lake)
    if bool(given.start) != bool(given.end):
        raise UsageError("--start and --end go together: the end is excluded")
    kind = given.format or given.out.suffix.removeprefix(".")
    if kind not in KINDS:
        raise UsageError(f"--out {given.out}: say with --format whether it shall be {', '.join(KINDS)}")
    days = parse_window(given.start, given.end) if given.start else None
    with _session(config, "lakerec export") as spark:
        count = export(config, spark, given.table, days, given.out, kind)
    print(f"{given.out}: {count} rows of {given.table}")


def _today() -> Window:
    """The window of what is about no day of the data; ops.runs names it."""
    today = date.today()
    return Window(today, today + timedelta(days=1))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--day is a day as YYYY-MM-DD: {error}") from None


def write_spark_conf(given: argparse.Namespace) -> None:
    """Write the deployment's Spark properties as a file for spark-submit."""
    config = load_config(given.config, given.lake)
    if given.timezone:
        print(config.timezone)
        return
    if given.lineage:
        print(as_json(config))
        return
    from lakerec.session import connection, write_properties

    if given.connection:
        print(connection(config))
    else:
        write_properties(config, given.out)


def write_zip(given: argparse.Namespace) -> None:
    """Write the package with its SQL and expectations: executors need it and a Python environment, no checkout."""
    from lakerec.package import write_package

    print(write_package(given.out))


if __name__ == "__main__":
    main()
