"""From landed rows to events: mapping, judgement, identity, visits. Pure: DataFrame -> DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lakerec.config import EVENT_COLUMNS, Config, EventSource
from lakerec.items import LONGEST, cut, source_columns
from lakerec.lake import Window as Days
from lakerec.quality import Rule, failed_rules, load_suite, severity
from lakerec.sources import BEGINNING, CORRUPT

ORIGIN = ("ingest_date", "source_file", "row_number")
TYPES = {"event_time": "timestamp", "value": "double", "position": "int"}


def dated_by_event(rows: DataFrame, source: EventSource) -> DataFrame:
    """Give rows of a file without a day their event's day; a row without a time gets its file's first day."""
    entries = source_columns(source)
    time = F.expr(source.columns["event_time"]).cast("timestamp")
    kept = [F.col(name).alias(f"_{name}") for name in (*ORIGIN, "payload")]
    dated = rows.select(*kept, *entries).select(*[f"_{n}" for n in (*ORIGIN, "payload")], F.to_date(time).alias("day"))
    first = F.coalesce(F.min("day").over(Window.partitionBy("_source_file")), F.lit(BEGINNING))
    return dated.select(
        F.coalesce("day", first).alias("ingest_date"),
        F.col("_source_file").alias("source_file"),
        F.col("_row_number").alias("row_number"),
        F.col("_payload").alias("payload"),
    )


def judged(bronze: DataFrame, config: Config, tombstones: DataFrame, key: str | None = None) -> DataFrame:
    """Bronze rows mapped and judged by the rules of silver.events; under a key user ids become pseudonyms first."""
    rows = mapped(bronze, config)
    if key is not None:
        rows = rows.withColumn("user_id", pseudonym(F.col("user_id"), key))
    return with_judgement(rows, load_suite("silver.events").rows, config, tombstones)


def mapped(rows: DataFrame, config: Config) -> DataFrame:
    """Bronze rows with the columns of silver.events by the configuration's mapping, beside their origin.

    Times without a zone are read in the session's zone, which is the configuration's.
    """
    source = config.sources.events
    entries = source_columns(source)
    origin = [F.col(name).alias(f"_{name}") for name in (*ORIGIN, "payload")]
    wide = rows.select(*origin, *entries)
    ruled = [F.coalesce(F.expr(rule.when), F.lit(False)).alias(f"_rule_{name}") for name, rule in source.rules.items()]
    columns = [_mapped(source, name).alias(name) for name in EVENT_COLUMNS]
    flat = wide.select(*[f"_{name}" for name in (*ORIGIN, "payload")], *ruled, *columns)
    named = [F.col(f"_{name}").alias(name) for name in (*ORIGIN, "payload")]
    return flat.select(*named, *[f"_rule_{name}" for name in source.rules], *EVENT_COLUMNS)


def _mapped(source: EventSource, name: str) -> Column:
    expression = source.columns.get(name)
    kind = TYPES.get(name, "string")
    value = F.lit(None).cast(kind) if expression is None else F.expr(expression).cast(kind)
    return cut(value, name) if name in LONGEST else value


def with_judgement(rows: DataFrame, rules: tuple[Rule, ...], config: Config, tombstones: DataFrame) -> DataFrame:
    """Mapped rows with event_date, failed_rules and severity; `tombstones` has user_key (as in silver.events)."""
    own = tuple(Rule(name, f"`_rule_{name}`", rule.severity) for name, rule in config.sources.events.rules.items())
    every = (*rules, *own)
    known = F.coalesce(F.col("event_type").isin(*config.event_types), F.lit(False))
    gone = F.broadcast(tombstones.select(F.col("user_key").alias("user_id"), F.lit(True).alias("gone")))
    wide = rows.join(gone, on="user_id", how="left").select(
        *rows.columns,
        F.col("payload")[CORRUPT].alias("corrupt"),
        F.to_date("event_time").alias("event_date"),
        F.lit(config.late_days).alias("late_days"),
        known.alias("known_type"),
        F.coalesce("gone", F.lit(False)).alias("tombstone"),
    )
    judged = wide.withColumn("failed_rules", failed_rules(every)).withColumn("severity", severity(every))
    # Only quarantine keeps the row as landed: what passed need not carry it through the shuffles.
    payload = F.when(F.col("severity").isNotNull(), F.col("payload")).alias("payload")
    return judged.select(*ORIGIN, payload, "event_date", *EVENT_COLUMNS, "failed_rules", "severity")


def severities(config: Config) -> dict[str, str]:
    """The severity of every row rule of silver.events, the deployment's own included."""
    own: dict[str, str] = {name: rule.severity for name, rule in config.sources.events.rules.items()}
    return {rule.name: rule.severity for rule in load_suite("silver.events").rows} | own


def refused_days(judged: DataFrame, window: Days, max_bad: float) -> DataFrame:
    """ingest_date of the days outside the window whose share of bad rows is above the gate.

    A function of what has landed and of nothing else, so that it does not matter which day was run first.
    """
    others = judged.where(f"NOT ({window.where('ingest_date')})").groupBy("ingest_date")
    shares = others.agg((F.count_if(F.col("severity") == "bad") / F.count(F.lit(1))).alias("bad_share"))
    return shares.where(F.col("bad_share") > max_bad).select("ingest_date")


def with_days_of(refused: Sequence[date], silver: DataFrame, touched: Days) -> Days:
    """The event days `touched`, and those on which silver has rows of refused days: good when they came in.

    Whole days, since visits and later deliveries of the same events follow from what else a day has.
    """
    held = silver.where(F.col("ingest_date").isin(*refused))
    found = held.agg(F.min("event_date").alias("first"), F.max("event_date").alias("last")).first()
    if found is None or found["first"] is None:
        return touched
    return Days(min(touched.start, found["first"]), max(touched.end, found["last"] + timedelta(days=1)))


def resolved(judged: DataFrame, window: Days, touched: Days, inactivity_minutes: int) -> DataFrame:
    """Every judged row with its fate (`written`, `duplicate` or `quarantined`) and, if written, its visit.

    Of two rows of one identity the smallest (ingest_date, source_file, row_number) is written. Rows whose day lies
    outside of the event days `touched` are another window's.
    """
    bad = F.col("severity").isNotNull()
    rewritten = F.expr(touched.where("event_date"))
    mine = judged.where(F.when(bad, F.expr(window.where("ingest_date"))).otherwise(rewritten))
    # A quarantined row is an identity of its own, so that rows without an id do not meet in one partition.
    alone = F.when(bad, F.concat_ws("|", *ORIGIN))
    identity = Window.partitionBy("event_date", bad, F.coalesce(alone, "event_id")).orderBy(*ORIGIN)
    place = F.row_number().over(identity)
    fate = F.when(bad, "quarantined").when(F.col("place") == 1, "written").otherwise("duplicate")
    ranked = mine.withColumn("place", place)
    return with_sessions(ranked.withColumn("fate", fate).drop("place"), inactivity_minutes)


def with_sessions(rows: DataFrame, inactivity_minutes: int) -> DataFrame:
    """Rows with session_id where their fate is `written`.

    A visit ends after `inactivity_minutes` without an event, and at the end of the day: so a day's visits follow
    from that day's events alone, in whatever order days are built.
    """
    in_day = Window.partitionBy("user_id", "event_date", "fate").orderBy("event_time", "event_id")
    gap = F.unix_timestamp("event_time") - F.unix_timestamp(F.lag("event_time").over(in_day))
    starts = F.when(gap > inactivity_minutes * 60, 1).otherwise(0)
    so_far = in_day.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    numbered = rows.withColumn("starts", starts).withColumn("visit", F.sum("starts").over(so_far))
    told = F.concat_ws("|", "user_id", F.col("event_date").cast("string"), F.col("visit").cast("string"))
    session = F.when(F.col("fate") == "written", F.substring(F.sha2(told, 256), 1, 16))
    return numbered.withColumn("session_id", session).drop("starts", "visit")


def pseudonym(column: Column, key: str) -> Column:
    """HMAC-SHA256 of an id in hex (RFC 2104), in native functions; null and empty ids stay as they are."""
    padded = key.encode()
    if len(padded) > 64:
        import hashlib

        padded = hashlib.sha256(padded).digest()
    padded = padded.ljust(64, b"\0")
    inner, outer = (F.lit(bytearray(b ^ pad for b in padded)) for pad in (0x36, 0x5C))
    digest = F.unhex(F.sha2(F.concat(inner, F.encode(column, "UTF-8")), 256))
    told = F.sha2(F.concat(outer, digest), 256)
    return F.when(F.coalesce(column, F.lit("")) == "", column).otherwise(told)


def daily_counts(rows: DataFrame, window: Days) -> DataFrame:
    """One row per ingest day of the window: read = written + duplicate + quarantined, and what is bad of them."""
    mine = rows.where(window.where("ingest_date"))
    fates = [F.count_if(F.col("fate") == fate).alias(fate) for fate in ("written", "duplicate", "quarantined")]
    bad = F.count_if(F.col("severity") == "bad")
    good = F.when(F.col("fate") == "written", F.col("user_id"))
    chosen = F.when(F.col("fate") == "written", F.col("item_id"))
    return mine.groupBy("ingest_date").agg(
        F.count(F.lit(1)).alias("read"),
        *fates,
        bad.alias("bad"),
        (bad / F.count(F.lit(1))).alias("bad_share"),
        F.approx_count_distinct(good).alias("users"),
        F.approx_count_distinct(chosen).alias("items"),
    )


def broken_rules(rows: DataFrame, window: Days) -> DataFrame:
    """How many rows of each ingest day broke each rule: ingest_date, rule, broken."""
    mine = rows.where(F.col("fate") == "quarantined").where(window.where("ingest_date"))
    return (
        mine.select("ingest_date", F.explode("failed_rules").alias("rule"))
        .groupBy("ingest_date", "rule")
        .agg(F.count(F.lit(1)).alias("broken"))
    )
