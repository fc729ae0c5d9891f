"""What every job shares: its command line, its run, its errors. `main(run)` is the body of every entry point."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from lakerec import faults, lineage
from lakerec.config import Config, load_config
from lakerec.errors import AlreadyServedError, ConfigError, LakeBusyError, LakerecError, UsageError
from lakerec.lake import FAILED, SKIPPED, Lake, Run, Window, first_line, local_frame
from lakerec.names import as_part

SPARK_IS_UP = "Spark is up ({:.1f} s)"
Body = Callable[["Job"], dict[str, Any]]
PR_SET_PDEATHSIG = 1  # of prctl(2)
MESSAGE = 1000  # characters of an error that the ledger keeps
# The steps of a day, in their order.
LAKE_STEPS = (
    "ingest_events",
    "ingest_catalogue",
    "conform_events",
    "conform_catalogue",
    "build_sequences",
    "embed_items",
)
MAPPING_STEPS = LAKE_STEPS[:4]  # what reads the sources, or computes their expressions
TRAINING_STEPS = ("build_patterns", "build_examples", "train_scorer", "evaluate_scorer", "promote_scorer")
SERVING_STEPS = ("score_candidates", "publish_recommendations")
STEPS = (*LAKE_STEPS, *TRAINING_STEPS, *SERVING_STEPS)
DATE_PATTERN = re.compile(r"DATETIME|pattern", re.IGNORECASE)  # in what Spark says of one that it does not know
CODEGEN = "spark.sql.codegen.factoryMode"
FEW_DAYS = 7  # windows that `spark.small_days` is for: it costs where rows are many


@dataclass
class Job:
    """One run of one job: its configuration, session, window and view of the lake."""

    config: Config
    spark: SparkSession
    lake: Lake
    every_day: bool = False

    @property
    def window(self) -> Window:
        """The days the run rebuilds."""
        return self.lake.run.window

    @property
    def run(self) -> Run:
        """What the run read and wrote so far."""
        return self.lake.run

    @property
    def last_day(self) -> date:
        """The last day of the window: what is known is what arrived by its end."""
        return self.window.end - timedelta(days=1)

    def say(self, text: str) -> None:
        """One line of progress on standard output."""
        print(f"{datetime.now():%H:%M:%S} {self.run.job}: {text}", flush=True)

    @contextmanager
    def telling(self, note: str) -> Iterator[Callable[[str], None]]:
        """`say`, whose last line ops.runs has as `note` where an error ends the run within."""

        def tell(text: str) -> None:
            self.say(text)
            self.run.notes[note] = text

        yield tell
        self.run.notes.pop(note, None)


def start(
    config: Config, spark: SparkSession, name: str, window: Window, run_id: str = "", every_day: bool = False
) -> Job:
    """A job ready to run."""
    if config.spark.small_days:  # either way: sessions outlive a job
        few = window.days <= FEW_DAYS and name in (*LAKE_STEPS, *SERVING_STEPS)
        spark.conf.set(CODEGEN, "NO_CODEGEN" if few else "FALLBACK")
    known = as_part(run_id, "run id") if run_id else f"{name}-{window.start}-{window.end}-{uuid.uuid4().hex[:8]}"
    return Job(config, spark, Lake(spark, config, Run(known, name, window, config.hash())), every_day)


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options every job and command takes."""
    parser.add_argument("--config", required=True, type=Path, help="the deployment's YAML")
    parser.add_argument("--start", required=True, help="first day, YYYY-MM-DD")
    parser.add_argument("--end", required=True, help="day behind the last, YYYY-MM-DD")
    parser.add_argument("--lake", help="overrides the configuration's lake")
    parser.add_argument("--every-day", action="store_true", help="lists for each day of the window")
    return parser


def command(config: Config, step: str, start_day: object, end_day: object, every_day: bool = False) -> str:
    """A step over a window as a person runs it, in the project's folder."""
    place = f"--config {quote(str(config.file))} --lake {quote(config.lake)}"
    return f".venv/bin/python jobs/{step}.py {place} --start {start_day} --end {end_day}" + " --every-day" * every_day


def parse_window(start_day: str, end_day: str) -> Window:
    """Two days as a window; raises UsageError where they are none."""
    try:
        window = Window(date.fromisoformat(start_day[:10]), date.fromisoformat(end_day[:10]))
    except ValueError as error:
        raise UsageError(f"--start and --end are days as YYYY-MM-DD: {error}") from None
    if window.start >= window.end:
        raise UsageError(f"--end {end_day} must lie behind --start {start_day}: the end is excluded")
    return window


def window_of(config: Config, given: argparse.Namespace) -> Window:
    """The window that a job is given; raises UsageError where a day of it has not begun in the shop's timezone.

    Lists of a day to come would stay: no earlier day is published over them.
    """
    return begun(config, parse_window(given.start, given.end))


def begun(config: Config, window: Window) -> Window:
    """The window; raises UsageError as `window_of` does."""
    if window.end > (latest := datetime.now(config.zone).date() + timedelta(days=1)):
        raise UsageError(
            f"--end {window.end} lies behind {latest}: a day that has not begun has no events and no lists"
        )
    return window


def body(name: str) -> Body:
    """The `run` function of jobs/<name>.py."""
    found: Body = importlib.import_module(name).run
    return found


def check_expressions(config: Config, spark: SparkSession, compute: bool = True) -> None:
    """Let Spark resolve every SQL expression of the configuration, and its patterns of dates on a row of texts.

    So a function that does not exist, or a pattern that Spark does not know, is found before any job starts, and not
    behind the landing of a year: ConfigError, with the expression's place. To compute costs a new session a second;
    what else a value may bring about (`assert_true`, `unbase64`) is for the real ones to say.
    """
    for name, source in config.sources:
        known = source.expressions() if source else {}
        texts = dict.fromkeys(source.source_columns(), "1") if source else {}
        schema = StructType([StructField(column, StringType()) for column in ("_row", *texts)])
        rows = local_frame(spark, schema, [texts])
        sound = not compute or not _fault(rows, [*known.values()])
        for keys, expression in known.items():
            try:
                # Beside a plain column an aggregate is refused; a rule has to be a condition.
                rows.where(expression) if keys[0] == "rules" else rows.select("_row", F.expr(expression))
                cause = "" if sound else _fault(rows, [expression])
            except PySparkException as error:
                cause = first_line(error)
            if cause:
                raise ConfigError(f"{config.where('sources', name, *keys)}: Spark cannot take {expression!r}: {cause}")


def _fault(rows: DataFrame, expressions: Sequence[str]) -> str:
    """What Spark says of a pattern of dates in the expressions; of one local row the optimizer computes them."""
    try:
        rows.select("_row", *map(F.expr, expressions)).collect()
    except (PySparkException, Py4JJavaError) as error:
        told = first_line(error)
        return told if DATE_PATTERN.search(told) else "" if len(expressions) == 1 else told
    return ""


_importing: list[threading.Thread] = []


def import_ahead(module: str) -> None:
    """Import a heavy module in a thread of its own: its seconds pass while Spark starts or works."""
    thread = threading.Thread(target=importlib.import_module, args=(module,), daemon=True)
    thread.start()
    _importing.append(thread)


def main(run: Body, ahead: str = "") -> None:
    """Run a job from its command line; a known error is one message and its exit code, not a stack trace.

    `ahead` is the heavy module that the job needs once its session is there.
    """
    name = Path(sys.argv[0]).stem
    given = parsed(name, sys.argv[1:], sys.modules["__main__"].__doc__)
    private()
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        _end_with_parent()
    sys.exit(guarded(lambda: _run(name, run, given, ahead)))


def _end_with_parent() -> None:
    """Have the kernel end this process with spark-submit's JVM: a training would go on for hours, for nobody."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def parsed(name: str, argv: Sequence[str], doc: str | None = None) -> argparse.Namespace:
    """The command line of an entry point."""
    parser = arguments(argparse.ArgumentParser(prog=name, description=doc))
    parser.add_argument("--run-id", default=os.environ.get("LAKEREC_RUN_ID", ""), help="name of this run")
    return parser.parse_args(argv)


def _run(name: str, run: Body, given: argparse.Namespace, ahead: str) -> None:
    from lakerec.session import build_session

    config = load_config(given.config, given.lake)
    window = window_of(config, given)
    if ahead:
        import_ahead(ahead)
    began = time.monotonic()
    with faults.told(config):
        spark = build_session(config, name, window.days)
        print(SPARK_IS_UP.format(time.monotonic() - began), flush=True)
        check_expressions(config, spark, name in MAPPING_STEPS)
    carry_out(spark, config, name, run, given)


def carry_out(spark: SparkSession, config: Config, name: str, run: Body, given: argparse.Namespace) -> None:
    """Run a job's body in a session that is there, and say what it counted."""
    job = start(config, spark, name, window_of(config, given), given.run_id, given.every_day)
    counts = done(job, run)
    job.say(", ".join(f"{k} {v}" for k, v in counts.items()))


def done(job: Job, run: Body) -> dict[str, Any]:
    """A job's counts, once it has run; OpenLineage hears of it, and the ledger of the error that ended it."""
    try:
        with faults.told(job.config), lineage.told(job):
            return run(job)
    except Exception as error:
        _record_stop(job, error)
        raise


def _record_stop(job: Job, error: Exception) -> None:
    """Into ops.runs where the lake can be had: whoever ran the job hears of the error in any case."""
    if isinstance(error, LakeBusyError):
        return
    known = isinstance(error, LakerecError)
    message = str(error) if known else next(iter(str(error).splitlines()), "")
    why = {"error": type(error).__name__, "message": message[:MESSAGE]}
    with suppress(Exception):
        job.lake.record_stop(SKIPPED if isinstance(error, AlreadyServedError) else FAILED, why)


def give_back() -> None:
    """Return freed memory to the system: behind a training glibc keeps 1.5 GB that the next steps' workers need."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def private() -> None:
    """Close what is written from now on to others than its owner and group: the JVM and the workers inherit it."""
    os.umask(os.umask(0o077) | 0o027)


def guarded(action: Callable[[], None]) -> int:
    """Run an action; the exit code of the error it ends with, 0 without one."""
    try:
        action()
    except (LakerecError, PermissionError) as error:
        known = error if isinstance(error, LakerecError) else faults.denied(error)
        if known is None:
            raise
        print(known.told, file=sys.stderr, flush=True)
        for thread in _importing:  # an interpreter that ends inside a C extension's import may abort: another exit code
            thread.join()
        return known.exit_code
    return 0
