"""The one operator: spark-submit of jobs/<task_id>.py for the days of the run."""

from __future__ import annotations

import re
from typing import Any

import psutil
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from common.defaults import CONFIG, END, HOME, START

FINAL = range(10, 20)  # exit codes of lakerec.errors for faults of input: the same input fails again
KILL_SECONDS = 3  # Airflow itself kills a task 5 s after it asked it to end


class LakerecJob(SparkSubmitOperator):
    """Submits jobs/<task_id>.py with the project's own Spark; fails at once where a retry cannot help."""

    def __init__(self, *, task_id: str, start: str = START, end: str = END, **kwargs: Any) -> None:
        python = str(HOME / ".venv" / "bin" / "python")
        super().__init__(
            task_id=task_id,
            name=task_id,
            application=str(HOME / "jobs" / f"{task_id}.py"),
            application_args=["--config", CONFIG, "--start", start, "--end", end],
            spark_binary=str(HOME / ".venv" / "bin" / "spark-submit"),
            properties_file=str(HOME / ".lakerec" / "spark.conf"),
            env_vars={"PYSPARK_PYTHON": python, "PYTHONPATH": str(HOME / "jobs")},
            **kwargs,
        )

    def execute(self, context: Any) -> None:
        """Run the job; exit codes 10 to 19 end the task without a retry."""
        try:
            super().execute(context)
        except AirflowException as error:
            if can_retry(str(error)):
                raise
            raise AirflowFailException(f"No retry: the same input fails again. {error}") from error

    def on_kill(self) -> None:
        """End spark-submit and all below it: its Python workers are in process groups of their own."""
        submitted = getattr(self._hook, "_submit_sp", None)
        if submitted is not None:
            end_tree(submitted.pid)
        super().on_kill()


def can_retry(message: str) -> bool:
    """Whether the failure that spark-submit's hook reports may go away: not for an exit code in FINAL."""
    found = re.search(r"Error code is: (\d+)", message)
    return found is None or int(found[1]) not in FINAL


def end_tree(pid: int) -> None:
    """End a process and all its descendants: ask, wait KILL_SECONDS, kill."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for signal in ("terminate", "kill"):
        for process in family:
            if process.is_running():  # compares the start time too, so a reused id is left alone
                getattr(process, signal)()
        _, family = psutil.wait_procs(family, timeout=KILL_SECONDS)
