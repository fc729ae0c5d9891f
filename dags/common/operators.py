"""The one operator: spark-submit of jobs/<task_id>.py for the days of the run, or the same in a warm driver."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import timezone
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    AirflowTaskTimeout,
)

from common.connections import secrets
from common.defaults import CLUSTER, CONFIG, END, HOME, START, STATE
from common.flow import OF_THE_LAST_DAY, inlets, outlets
from common.rules import NOTHING_TO_DO, TOO_LONG, can_retry, cause, days, exit_code, must_wait

MARK = "LAKEREC_TASK"  # environment variable that all processes of a task inherit, whichever attempt started them
TASK = f"{STATE}:{{{{ ti.dag_id }}}}:{{{{ ti.run_id }}}}:{{{{ ti.task_id }}}}:{{{{ ti.map_index }}}}"
PARENT = "LAKEREC_LINEAGE_PARENT"
KILL_SECONDS = 3  # Airflow itself kills a task 5 s after it asked it to end
LOOK_AGAIN = timedelta(seconds=20)
PROPERTIES = STATE / "spark.conf"


class LakerecJob(SparkSubmitOperator):
    """Submits jobs/<task_id>.py with the project's own Spark; fails at once where a retry cannot help.

    warm: it may run in the deployment's warm driver where the configuration has `spark.reuse`. in_order: it waits while
    an earlier day's run of the DAG has not done the same task. trains: a try may take `airflow.training_minutes` of the
    YAML, and not its `task_minutes`. Each day of its window is a partition of its assets once
    it is done. Other days may have changed, too: conform_events also rewrites the `late_days` before, build_sequences
    every day behind.
    """

    def __init__(
        self,
        *,
        task_id: str,
        start: str = START,
        end: str = END,
        warm: bool = False,
        in_order: bool = False,
        trains: bool = False,
        **kwargs: Any,
    ) -> None:
        self.warm, self.in_order, self.cause = warm, in_order, ""
        self.limit = "training_minutes" if trains else "task_minutes"
        python = str(HOME / ".venv" / "bin" / "python")
        place = "local://" if CLUSTER == "kubernetes" else ""  # in the driver's image
        super().__init__(
            task_id=task_id,
            name=task_id,
            application=f"{place}{HOME}/jobs/{task_id}.py",
            application_args=["--config", CONFIG, "--start", start, "--end", end],
            spark_binary=str(HOME / ".venv" / "bin" / "spark-submit"),
            properties_file=str(PROPERTIES),
            env_vars={"PYSPARK_PYTHON": python, "PYTHONPATH": str(HOME / "jobs"), MARK: TASK},
            inlets=inlets(task_id),
            outlets=outlets(task_id),
            # By its API a cluster tells how a driver ended, and a worker that comes back finds the one it had started.
            yarn_track_via_rm_api=CLUSTER == "yarn",
            track_driver_via_k8s_api=CLUSTER == "kubernetes",
            **kwargs,
        )

    def pre_execute(self, context: Any) -> None:
        """Have Airflow end a try that takes longer than the deployment allows: a driver that hangs keeps its pool."""
        if minutes := setting(self.limit):
            self.execution_timeout = timedelta(minutes=float(minutes))

    def execute(self, context: Any) -> None:
        """Run the job; exit codes 10 to 19 end the task without a retry, AlreadyServedError's skips it.

        An attempt that was killed leaves its spark-submit behind, which would train or score beside this one.
        """
        if self.in_order and must_wait(earlier_days(context["ti"], context["dag_run"].logical_date)):
            self.log.info("an earlier day is on its way to the same task: waiting for it")
            raise AirflowRescheduleException(timezone.utcnow() + LOOK_AGAIN)
        if os.environ.get("AIRFLOW__OPENLINEAGE__TRANSPORT"):
            self.env_vars[PARENT] = lineage_parent(context["ti"])
        end_marked(self.env_vars[MARK])
        try:
            with secrets():
                self.execute_warm() if self.warm and not CLUSTER and setting("reuse") == "true" else super().execute(
                    context
                )
        except (AirflowException, RuntimeError) as error:  # RuntimeError: a driver on a cluster has failed
            if exit_code(str(error)) == NOTHING_TO_DO:
                raise AirflowSkipException("Nothing to do: the site has lists of a later day.") from error
            told = f"{error}\n{self.cause}".strip()
            if can_retry(str(error)):
                raise AirflowException(told) from error
            raise AirflowFailException(f"No retry: the same input fails again. {told}") from error
        except AirflowTaskTimeout:  # Airflow calls on_kill next
            limit = f"{self.execution_timeout} ({self.limit} of the YAML)"
            raise AirflowTaskTimeout(f"{self.task_id} {TOO_LONG} {limit}: its processes are ended.") from None
        written = days(*self.window)[-1:] if self.task_id in OF_THE_LAST_DAY else days(*self.window)
        for one in self.outlets:
            context["outlet_events"][one].add_partitions(written)

    @property
    def window(self) -> tuple[str, str]:
        """The run's days [start, end), once the templates are rendered."""
        return self.application_args[3], self.application_args[5]

    def execute_warm(self) -> None:
        """Let the deployment's warm driver take the step; its output is this task's log."""
        command = [self.env_vars["PYSPARK_PYTHON"], "-m", "lakerec.warm", "step", "--state", str(STATE), self.task_id]
        client = subprocess.Popen(
            command + self.application_args,
            env=os.environ | self.env_vars,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in self.heard(client.stdout or ()):
            self.log.info(line.rstrip())
        if code := client.wait():
            raise AirflowException(f"{self.task_id} failed in the warm driver. Error code is: {code}.")

    def heard(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines of a job's output; the one that says why it ended is kept for whoever is told of the failure."""
        for line in lines:
            self.cause = cause(self.cause, line)
            yield line

    def _get_hook(self) -> Any:
        """Airflow's hook, listened to, and with the environment for spark-submit whatever the master.

        For Kubernetes it would only be properties of a pod, of which a driver in deploy mode client has none.
        """
        hook = super()._get_hook()
        hook._env = self.env_vars
        read = hook._process_spark_submit_log
        hook._process_spark_submit_log = lambda lines: read(self.heard(lines))
        return hook

    def on_kill(self) -> None:
        """End spark-submit and all that it started, wherever that is by now; then what runs on a cluster."""
        end_marked(self.env_vars[MARK])
        super().on_kill()


def lineage_parent(ti: Any) -> str:
    """The task's run as OpenLineage knows it, for the job to name as its parent."""
    from airflow.providers.openlineage.plugins.macros import lineage_parent_id

    return lineage_parent_id(ti)


def setting(name: str, properties: Path = PROPERTIES) -> str:
    """What the YAML says to the DAGs, by the properties that `make up` wrote of it; empty where they do not have it."""
    lines = properties.read_text().splitlines() if properties.exists() else []
    return next((line.split(" ", 1)[1] for line in lines if line.startswith(f"spark.lakerec.{name} ")), "")


def earlier_days(ti: Any, since: datetime | None) -> Iterator[tuple[str | None, bool]]:
    """The same task in the DAG's runs of days before `since`, newest first: its state, and whether its run goes on.

    A run by hand has no date, and waits for nobody.
    """
    while since is not None and (found := ti.get_previous_ti(logical_date=since)) is not None:
        yield found.state, bool(ti.get_dr_count(ti.dag_id, run_ids=[found.run_id], states=["running"]))
        since = found.logical_date


def end_marked(mark: str) -> None:
    """End every process that inherited the mark of a task: ask, wait KILL_SECONDS, kill.

    Neither process group nor parent would do: Spark's Python workers are in groups of their own, and their
    parent may be dead already, because Airflow signals the task's whole group.
    """
    for signal in ("terminate", "kill"):
        family = [process for process in psutil.process_iter() if mark_of(process) == mark]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                getattr(process, signal)()
        psutil.wait_procs(family, timeout=KILL_SECONDS)


def mark_of(process: psutil.Process) -> str | None:
    """The mark in the environment of a process, or None where it has none or cannot be read."""
    with suppress(psutil.Error):
        return process.environ().get(MARK)
    return None
