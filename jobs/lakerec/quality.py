"""Rules and gate: row rules of expectations/ as Spark predicates, batch expectations by Great Expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from lakerec.errors import ContractError, DataQualityError
from lakerec.lake import Lake

EXPECTATIONS = files("lakerec") / "expectations"  # a link, as tables.SQL
SHOWN = 100  # validations that Data Docs show: five a day
# Rows up to which a batch is validated in the driver: on Spark every expectation is a job or three of 0.1 s each.
SMALL = 20_000
OF_EVENTS = (
    "The rows are in quarantine.events with the rules they broke. Correct the files and deliver them again, "
    "or raise gate.max_bad if such days are normal."
)
OF_CATALOGUE = (
    "It is made of all that has landed: look at the newest rows of bronze.{0} (a file without rows, without ids or "
    "texts?) and at the columns of sources.{0}, then deliver the file again."
)
SUMMARY_COLUMNS = ("ingest_date", "read", "quarantined", "bad", "bad_share", "duplicate", "written", "users", "items")


@dataclass(frozen=True)
class Rule:
    """A row rule: rows for which the predicate holds go to quarantine."""

    name: str
    when: str
    severity: Literal["expected", "bad"]


@dataclass(frozen=True)
class Suite:
    """What is expected of a table: rules of its rows, of each ingest day's summary, of the batch to be written."""

    table: str
    rows: tuple[Rule, ...]
    days: tuple[dict[str, Any], ...]
    batch: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one expectation; `day` where it speaks of one ingest day."""

    rule: str
    kind: Literal["row", "batch", "audit"]
    severity: str
    success: bool
    observed: float | None
    rows: int | None
    day: date | None = None

    @classmethod
    def of_batch(cls, result: dict[str, Any], day: date | None = None) -> Outcome:
        """What Great Expectations found, of the whole batch or of one ingest day."""
        return cls(result["rule"], "batch", "batch", result["success"], result["observed"], result["rows"], day)

    def told(self, days: pd.DataFrame) -> str:
        """A failure for people: the ingest day with its counts, and the rule."""
        if self.day is None:
            return f"{self.rule}: observed {self.observed}"
        row = days[days["ingest_date"] == self.day].iloc[0]
        share = f"{row['bad']} of {row['read']} rows are bad ({row['bad_share']:.1%})"
        return f"ingest day {self.day}: {self.rule}: {share}"

    def row(self, run_id: str, table_name: str) -> dict[str, Any]:
        """The outcome as a row of ops.dq_results."""
        fields = {"rule": self.rule, "kind": self.kind, "severity": self.severity, "success": self.success}
        found = {"observed": self.observed, "rows": self.rows, "ingest_date": self.day}
        return {"run_id": run_id, "table_name": table_name, **fields, **found}


@cache
def load_suite(name: str) -> Suite:
    """Read expectations/<table>.yaml; raises ContractError where it is not of the expected form."""
    file = EXPECTATIONS / f"{name}.yaml"
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    unknown = set(raw) - {"rows", "days", "batch"}
    if unknown:
        raise ContractError(f"{file}: unknown {sorted(unknown)}; known: rows, days, batch")
    rules = tuple(Rule(r["rule"], r["when"], r["severity"]) for r in raw.get("rows", ()))
    return Suite(name, rules, tuple(raw.get("days", ())), tuple(raw.get("batch", ())))


def failed_rules(rules: tuple[Rule, ...]) -> Column:
    """Names of the rules a row breaks, in their order: array<string>."""
    # array_remove is compiled; array_compact is not, and has Spark interpret the rules and the mapping behind them.
    broken = [F.when(F.expr(rule.when), F.lit(rule.name)).otherwise("") for rule in rules]
    return F.array_remove(F.array(*broken), "") if broken else F.array().cast("array<string>")


def severity(rules: tuple[Rule, ...]) -> Column:
    """`bad` where one of the broken rules is bad, `expected` where all are; null for a row that breaks none."""
    bad = F.array(*[F.lit(rule.name) for rule in rules if rule.severity == "bad"]).cast("array<string>")
    found = F.col("failed_rules")
    return F.when(F.arrays_overlap(found, bad), "bad").when(F.size(found) > 0, "expected")


class DataDocs:
    """Great Expectations with a file context below the lake, so that its results become Data Docs."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        folder.mkdir(parents=True, exist_ok=True)
        self._gx = gx
        self._new: list[Any] = []
        _mend(folder / "gx")
        try:
            self._context = gx.get_context(mode="file", project_root_dir=str(folder))
        except Exception:  # half a YAML raises YAML's errors, pydantic's or its own; all that it says is said anew
            for file in (folder / "gx").rglob("*.yml"):
                file.unlink()
            self._context = gx.get_context(mode="file", project_root_dir=str(folder))
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
        self.index = folder / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"

    def validate(self, name: str, rows: Any, expectations: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        """Validate a pandas or Spark DataFrame; one dictionary per expectation: rule, success, observed, days."""
        gx = self._gx
        suite = gx.ExpectationSuite(name=name, expectations=[self._expectation(e) for e in expectations])
        suite = self._context.suites.add_or_update(suite)
        definition = gx.ValidationDefinition(name=name, data=self._batch(name, rows), suite=suite)
        definition = self._context.validation_definitions.add_or_update(definition)
        checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition], actions=[], result_format="COMPLETE")
        result = self._context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": rows})
        ((place, found),) = result.run_results.items()
        self._new += [place, place.expectation_suite_identifier]
        return [_result(r) for r in found.results]

    def build(self) -> Path:
        """Render what was validated here into Data Docs, which show the newest SHOWN results; their first page."""
        store = self._context.validation_results_store
        results: list[Any] = store.list_keys()
        for old in sorted(results, key=lambda key: key.run_id.run_time, reverse=True)[SHOWN:]:
            store.remove_key(old)
        # Without these identifiers every page is rendered anew: a day would take longer each day.
        self._context.build_data_docs(resource_identifiers=self._new)
        return self.index

    def _expectation(self, spec: dict[str, Any]) -> Any:
        kind = spec["expect"]
        return getattr(self._gx.expectations, kind)(**{k: v for k, v in spec.items() if k not in ("expect", "rule")})

    def _batch(self, name: str, rows: Any) -> Any:
        sources: Any = self._context.data_sources
        # A source is of one engine for good. persist=True, the default, caches every batch a second time.
        if isinstance(rows, DataFrame):
            source = sources.add_or_update_spark(f"{name}, Spark", persist=False)
        else:
            source = sources.add_or_update_pandas(f"{name}, pandas")
        return source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)


def batch(rows: DataFrame, count: int) -> DataFrame | pd.DataFrame:
    """Rows to be validated, `count` of them: few as pandas, many where they are."""
    return rows.toPandas() if count <= SMALL else rows


def _mend(folder: Path) -> None:
    """Remove half-written files: Great Expectations writes in place, and a run may be killed or find the disk full."""
    for file in folder.rglob("*.json"):
        with file.open("rb") as stream:
            stream.seek(-min(2, file.stat().st_size), os.SEEK_END)
            whole = stream.read().strip().endswith((b"}", b"]"))
        if not whole:
            file.unlink()


def _result(result: Any) -> dict[str, Any]:
    config, found = result.expectation_config, result.result or {}
    observed = found.get("observed_value", found.get("unexpected_count"))
    columns = config.kwargs.get("column") or ",".join(config.kwargs.get("column_list", ())) or "table"
    if result.exception_info and result.exception_info.get("raised_exception"):
        raise ContractError(f"{config.type} on {columns}: {result.exception_info.get('exception_message')}")
    return {
        "rule": f"{config.type}({columns})",
        "success": bool(result.success),
        "observed": float(observed) if isinstance(observed, int | float) else None,
        "unexpected": list(found.get("unexpected_index_list") or ()),
        "rows": found.get("element_count"),
    }


def row_outcomes(severities: Mapping[str, str], broken: list[Row], days: pd.DataFrame) -> list[Outcome]:
    """What each row rule found on each ingest day; a rule that no row broke is one outcome of the whole window.

    `broken` has ingest_date, rule and broken; `days` a row per ingest day with `read`.
    """
    reads = {day: int(n) for day, n in zip(days["ingest_date"], days["read"], strict=True)}
    found = [(row["rule"], row["ingest_date"], row["broken"]) for row in broken]
    failed = [Outcome(r, "row", severities[r], False, float(n), reads[day], day) for r, day, n in found]
    clean = [(r, severity) for r, severity in severities.items() if r not in {rule for rule, _, _ in found}]
    return failed + [Outcome(r, "row", severity, True, 0.0, sum(reads.values())) for r, severity in clean]


def by_day(days: pd.DataFrame, names: Sequence[str]) -> dict[date, dict[str, int]]:
    """The named counts of each ingest day."""
    return {row["ingest_date"]: {name: int(row[name]) for name in names} for _, row in days.iterrows()}


def day_outcomes(result: dict[str, Any], days: pd.DataFrame) -> list[Outcome]:
    """An expectation over the ingest days: an outcome for each failing day, or one for all."""
    failing = [days["ingest_date"].iloc[place] for place in result["unexpected"]]
    return [Outcome.of_batch(result, day) for day in failing or [None]]


def refuse(table_name: str, failures: list[str], version: int | None, hint: str) -> None:
    """Raise DataQualityError where there is a failure; the message says which day broke what, `hint` what to do.

    The first failure is on the first line, which is all that an alert has of a message.
    """
    if not failures:
        return
    shown = failures[:20] + [f"and {len(failures) - 20} more"] * (len(failures) > 20)
    kept = f"stays at version {version}" if version is not None else "was not created"
    raise DataQualityError(f"{table_name} {kept}: " + "\n  ".join(shown) + f"\n{hint}")


def gate(lake: Lake, tables: dict[str, DataFrame], counts: Mapping[str, int]) -> None:
    """Validate each table's new rows by its batch expectations; store the outcomes, DataQualityError on a failure."""
    docs = DataDocs(lake.local_folder("_dq"))
    batches = {name: batch(rows, counts[name]) for name, rows in tables.items()}
    found = {name: docs.validate(f"{name} batch", rows, load_suite(name).batch) for name, rows in batches.items()}
    docs.build()
    outcomes = {name: [Outcome.of_batch(result) for result in results] for name, results in found.items()}
    rows = [o.row(lake.run.run_id, name) for name, found in outcomes.items() for o in found]
    lake.append_rows("ops.dq_results", rows)
    for name, judged in outcomes.items():
        failures = [f"{o.rule}: observed {o.observed}" for o in judged if not o.success]
        refuse(name, failures, lake.version(name), OF_CATALOGUE.format(name.split(".")[1]))
