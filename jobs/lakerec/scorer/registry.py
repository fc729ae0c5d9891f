"""Runs and model versions in MLflow; its database is a SQLite file or a server the caller names."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakerec.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from lakerec.scorer.artefact import Manifest
    from lakerec.scorer.training import TrainingReport

MODEL = "lakerec-scorer"
CHAMPION = "champion"
SQLITE = "sqlite:///"
TAG_LENGTH = 4000  # MLflow's database holds 5,000 characters of a tag


@contextmanager
def mirrored(say: Callable[[str], None]) -> Iterator[None]:
    """What goes wrong in MLflow is told, and the run goes on: MLflow mirrors what the lake holds."""
    try:
        yield
    except Exception as error:  # MLflow's, SQLAlchemy's, Alembic's and the system's have no common root
        cause = next(iter(str(error).splitlines()), "")[:300]
        say(f"MLflow was not written ({type(error).__name__}: {cause}); the lake, which it mirrors, was")


def _client(uri: str) -> MlflowClient:
    """MLflow takes 2 s to import and 5 s to make a database: only who logs pays for it."""
    from mlflow import MlflowClient

    _check_file(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_file(uri: str) -> None:
    """Raise sqlite3.Error where a SQLite file cannot be written: MLflow itself tries ten times, for two minutes."""
    if uri.startswith(SQLITE):
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")


def log_training(uri: str, experiment: str, report: TrainingReport, manifest: Manifest) -> str:
    """Log a training as a finished run (settings, figures, losses per epoch) and return its run id."""
    client = _client(uri)
    known = client.get_experiment_by_name(experiment)
    run = client.create_run(known.experiment_id if known else client.create_experiment(experiment))
    run_id = run.info.run_id
    for name, value in {"version": manifest.version, "base_model": manifest.base_model}.items():
        client.set_tag(run_id, name, value)
    for name, value in manifest.settings.items():
        client.log_param(run_id, name, value)
    for name, value in asdict(report).items():
        _log_figure(client, run_id, name, value)
    client.set_terminated(run_id)
    return run_id


def _log_figure(client: MlflowClient, run_id: str, name: str, value: Any) -> None:
    """A list has a step for each epoch; what is no number is a tag."""
    if isinstance(value, str):
        client.set_tag(run_id, name, value)
        return
    for step, figure in enumerate(value if isinstance(value, list) else [value]):
        client.log_metric(run_id, name, float(figure), step=step)


def register(
    uri: str, version: str, artefact_path: Path, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
) -> str:
    """Register an artefact once under its version, return MLflow's number; ndcg@10 is tagged ndcg_at_10."""
    client = _client(uri)
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL)
    number = _number(client, version) or _create(client, version, artefact_path)
    told = {name.replace("@", "_at_"): f"{value:.6g}" for name, value in metrics.items()} | dict(tags or {})
    for name, text in told.items():
        client.set_model_version_tag(MODEL, number, name, text[:TAG_LENGTH])
    return number


def _create(client: MlflowClient, version: str, artefact_path: Path) -> str:
    source = artefact_path.resolve().as_uri()
    return str(client.create_model_version(MODEL, source=source, tags={"version": version}).version)


def _number(client: MlflowClient, version: str) -> str | None:
    found = client.search_model_versions(f"name = '{MODEL}' and tag.version = '{version}'")
    return str(found[0].version) if found else None


def set_champion(uri: str, version: str) -> None:
    """Point the alias `champion` at a version; raises ModelError where it is not registered."""
    client = _client(uri)
    number = _number(client, version)
    if number is None:
        raise ModelError(
            f"{uri}: {MODEL} has no version {version}: register it first, by promote_scorer or by `lakerec rollback`"
        )
    client.set_registered_model_alias(MODEL, CHAMPION, number)


def forget(uri: str, versions: Sequence[str]) -> None:
    """Remove versions from the registry, and the runs of their trainings with all figures, for good."""
    client = _client(uri)
    for version in versions:
        if number := _number(client, version):
            client.delete_model_version(MODEL, number)
    known = [experiment.experiment_id for experiment in client.search_experiments()]
    found = [run for version in versions for run in client.search_runs(known, f"tags.version = '{version}'")]
    for run in found:
        client.delete_run(run.info.run_id)
    if found:
        from mlflow.cli import gc

        ids = ",".join(run.info.run_id for run in found)
        gc.main(["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", ids], standalone_mode=False)
