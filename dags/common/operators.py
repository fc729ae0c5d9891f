"""The one operator: spark-submit of jobs/<task_id>.py for the days of the run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from common.defaults import CONFIG, END, HOME, START, STATE
from common.rules import can_retry

MARK = "LAKEREC_TASK"  # environment variable that all processes of a task inherit, whichever attempt started them
TASK = f"{STATE}:{{{{ ti.dag_id }}}}:{{{{ ti.run_id }}}}:{{{{ ti.task_id }}}}:{{{{ ti.map_index }}}}"
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
            properties_file=str(STATE / "spark.conf"),
            env_vars={"PYSPARK_PYTHON": python, "PYTHONPATH": str(HOME / "jobs"), MARK: TASK},
            **kwargs,
        )

    def execute(self, context: Any) -> None:
        """Run the job; exit codes 10 to 19 end the task without a retry.

        An attempt that was killed leaves its spark-submit behind, which would train or score beside this one.
        """
        end_marked(self.env_vars[MARK])
        try:
            super().execute(context)
        except AirflowException as error:
            if can_retry(str(error)):
                raise
            raise AirflowFailException(f"No retry: the same input fails again. {error}") from error

    def on_kill(self) -> None:
        """End spark-submit and all that it started, wherever that is by now; then what runs on a cluster."""
        end_marked(self.env_vars[MARK])
        super().on_kill()


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
