"""OpenLineage events of each run (openlineage.io): its window, the tables it read and wrote, and their versions.

They go where `lineage` of the YAML says. Airflow's own provider tells of DAGs and tasks at the same place; a job's run
is tied to its task by the parent that Airflow hands over. Spark's listener, where the YAML wants it, tells of columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from lakerec import __version__
from lakerec.config import Config
from lakerec.tables import table

if TYPE_CHECKING:
    from lakerec.job import Job

PRODUCER = f"urn:lakerec:{__version__}"
NAMESPACE = "lakerec"
TIMEOUT = "2000"  # milliseconds that the listener waits for an endpoint, at each event
LISTENER = "io.openlineage.spark.agent.OpenLineageSparkListener"
PARENT = "LAKEREC_LINEAGE_PARENT"  # namespace/task/run of the Airflow task, as its provider's macro renders it


def transport(config: Config) -> dict[str, Any]:
    """The transport of openlineage-python and of Airflow's provider; empty where nobody is to be told."""
    where = config.lineage
    if where.file:
        return {"type": "file", "log_file_path": config.resolve(where.file), "append": True}
    if where.url:
        key = os.environ.get(where.key_env)
        return {"type": "http", "url": where.url} | ({"auth": {"type": "api_key", "apiKey": key}} if key else {})
    return {}


def listener(config: Config) -> dict[str, str]:
    """Spark properties of OpenLineage's listener at the same place; none where the YAML does not want it. No secret."""
    where = config.lineage
    if not where.spark:
        return {}
    place = {"type": "file", "location": config.resolve(where.file or "")}
    if where.url:  # by its whole path: the two clients would complete it in different ways
        place = {"type": "http", "url": urljoin(where.url, "api/v1/lineage"), "timeoutInMillis": TIMEOUT}
    told = {"namespace": NAMESPACE, **{f"transport.{key}": value for key, value in place.items()}}
    # At its end a driver tells what it has not told yet, for no longer than this.
    return {"spark.extraListeners": LISTENER, "spark.scheduler.listenerbus.exitTimeout": "30s"} | {
        f"spark.openlineage.{key}": value for key, value in told.items()
    }


def listener_of_run(config: Config) -> dict[str, str]:
    """What of the listener only the process knows: the endpoint's key, and the Airflow task that it runs for."""
    if not config.lineage.spark:
        return {}
    auth = transport(config).get("auth", {})
    told = {f"transport.auth.{name}": value for name, value in auth.items()}
    if parent := _parent():
        told |= dict(zip(("parentJobNamespace", "parentJobName", "parentRunId"), parent, strict=True))
    return {f"spark.openlineage.{key}": value for key, value in told.items()}


def _parent() -> tuple[str, ...]:
    """Namespace, name and run of the Airflow task; empty where there is none."""
    parts = os.environ.get(PARENT, "").split("/")
    return tuple(parts) if len(parts) == 3 else ()


@contextmanager
def told(job: Job) -> Iterator[None]:
    """START before a job, COMPLETE or FAIL behind it. A catalogue that does not answer fails no job."""
    known = transport(job.config)
    if not known:
        yield
        return
    run_id = _emit(job, known, "START")
    try:
        yield
    except BaseException:
        _emit(job, known, "FAIL", run_id)
        raise
    _emit(job, known, "COMPLETE", run_id)


def _emit(job: Job, known: dict[str, Any], state: str, run_id: str | None = None) -> str:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import Job as LineageJob
    from openlineage.client.event_v2 import Run, RunEvent, RunState
    from openlineage.client.uuid import generate_new_uuid

    told_as = run_id or str(generate_new_uuid())
    event = RunEvent(
        eventType=RunState[state],
        eventTime=datetime.now(UTC).isoformat(),
        run=Run(told_as, _run_facets(job)),
        job=LineageJob(NAMESPACE, job.run.job),
        producer=PRODUCER,
        inputs=_datasets(job, job.run.inputs, written=False),
        outputs=_datasets(job, job.run.outputs, written=True),
    )
    try:
        OpenLineageClient(config={"transport": known}).emit(event)
    except Exception as error:
        job.say(f"lineage could not be told to {known.get('url') or known.get('log_file_path')}: {error}")
    return told_as


def _run_facets(job: Job) -> dict[str, Any]:
    from openlineage.client.facet_v2 import nominal_time_run, parent_run

    days = (job.window.start, job.window.end)
    start, end = (datetime(d.year, d.month, d.day, tzinfo=job.config.zone).isoformat() for d in days)
    facets: dict[str, Any] = {"nominalTime": nominal_time_run.NominalTimeRunFacet(start, end)}
    if parent := _parent():
        namespace, name, run = parent
        by = parent_run.ParentRunFacet(parent_run.Run(run), parent_run.Job(namespace, name))
        facets["parent"] = by
    return facets


def _datasets(job: Job, versions: Mapping[str, int], written: bool) -> list[Any]:
    """Each table at its version, by OpenLineage's naming of files: file and path, or the bucket and the path in it."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

    def dataset(name: str, version: int) -> Any:
        columns = [schema_dataset.SchemaDatasetFacetFields(c.name, c.type, c.comment) for c in table(name).columns]
        facets: dict[str, Any] = {
            "version": dataset_version_dataset.DatasetVersionDatasetFacet(str(version)),
            "schema": schema_dataset.SchemaDatasetFacet(columns),
        }
        namespace, path = named(job.lake.path(name))
        kind = OutputDataset if written else InputDataset
        return kind(namespace, path, facets=facets)

    return [dataset(name, version) for name, version in sorted(versions.items())]


def named(path: str) -> tuple[str, str]:
    """Namespace and name of a dataset at a path or URI."""
    if "://" not in path:
        return "file", path
    scheme, rest = path.split("://", 1)
    bucket, *inside = PurePosixPath(rest).parts
    return f"{scheme}://{bucket}", "/".join(inside)


def as_json(config: Config) -> str:
    """The transport as Airflow's setting `openlineage.transport`; empty where there is none."""
    known = transport(config)
    return json.dumps(known) if known else ""
