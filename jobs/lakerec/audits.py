"""Audits of whole tables: every key of the DDL, and the queries of sql/audits, which find the rows that break one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.errors import ContractError, DataQualityError
from lakerec.lake import Lake
from lakerec.quality import Outcome
from lakerec.sequences import sequence_types
from lakerec.tables import SQL, sql_text, table, table_names
from lakerec.upkeep import kept_from

HEADER = re.compile(r"^-- (.+)\n-- Severity: (expected|bad)\. Tables: (.+)\.$", re.MULTILINE)
SHOWN = 3  # broken rows that a message shows


@dataclass(frozen=True)
class Audit:
    """A rule of a whole table; `rows` are those that break it."""

    table: str
    rule: str
    told: str
    severity: str
    rows: DataFrame


@dataclass(frozen=True)
class Finding:
    """What an audit found: how many rows break it, and the first of them."""

    audit: Audit
    broken: int
    examples: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether it makes the upkeep fail; what is only told does not."""
        return self.broken > 0 and self.audit.severity == "bad"

    def row(self, run_id: str) -> dict[str, Any]:
        """As a row of ops.dq_results."""
        audit = self.audit
        outcome = Outcome(audit.rule, "audit", audit.severity, not self.broken, float(self.broken), None)
        return outcome.row(run_id, audit.table)

    def line(self) -> str:
        """For people: table, rule, what it means and the first broken rows."""
        shown = "; ".join(self.examples)
        return f"{self.audit.table}: {self.audit.rule}: {self.broken} rows: {self.audit.told} First: {shown}"


def key_audit(name: str, rows: DataFrame) -> Audit:
    """The keys of a table that more than one row has."""
    key = table(name).key
    twice = rows.groupBy(*key).agg(F.count(F.lit(1)).alias("rows")).where("rows > 1")
    return Audit(name, f"unique({','.join(key)})", "Rows share a key.", "bad", twice)


def query_audit(lake: Lake, file_name: str, end: date) -> Audit:
    """A query of sql/audits, named TABLE.RULE; raises ContractError where its head does not say what it needs."""
    text = sql_text("audits", file_name)
    head = HEADER.search(text)
    if head is None:
        raise ContractError(f"sql/audits/{file_name}.sql: '-- What it finds' and '-- Severity: .. Tables: ..' expected")
    told, severity, tables = head.groups()
    name, rule = file_name.rsplit(".", 1)
    # Spark puts frames and values in, and quotes them: with Delta's parser it knows no named parameters (`:name`).
    given: dict[str, Any] = {alias: lake.read(of) for alias, of in re.findall(r"(\w+) \(([\w.]+)\)", tables)}
    given["kept_from"] = str(kept_from(lake.config, name, end))
    given["sequence_types"] = ",".join(sequence_types(lake.config))
    return Audit(name, rule, told, severity, lake.spark.sql(text, **given))


def audits(lake: Lake, end: date) -> Iterator[Audit]:
    """Every audit of the tables that exist, at the versions that the run has pinned."""
    there = [name for name in table_names() if lake.exists(name)]
    yield from (key_audit(name, lake.read(name)) for name in there)
    for name in sorted(file.name.removesuffix(".sql") for file in (SQL / "audits").iterdir()):
        if name.rsplit(".", 1)[0] in there:
            yield query_audit(lake, name, end)


def found(audit: Audit) -> Finding:
    """Run an audit."""
    broken = audit.rows.count()
    rows = audit.rows.limit(SHOWN).collect() if broken else []
    return Finding(audit, broken, tuple(", ".join(f"{k} {v}" for k, v in row.asDict().items()) for row in rows))


def refuse(failed: Sequence[Finding], run_id: str) -> None:
    """Raise DataQualityError where an audit failed; it names each with its first rows."""
    if not failed:
        return
    first = "; ".join(f"{one.audit.table}: {one.audit.rule}" for one in failed[:3]) + "; ..." * (len(failed) > 3)
    shown = "\n  ".join(finding.line() for finding in failed)
    raise DataQualityError(
        f"{len(failed)} audits of the lake failed ({first}); nothing was changed\n  {shown}\n"
        f"All outcomes are in ops.dq_results under run {run_id}. Rebuild the days that are named (make trigger "
        f"DAG=reco_daily), then clear this task; docs/operations.md says what each rule means."
    )
