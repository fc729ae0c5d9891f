"""Training snapshots: who chose what behind each cut, what they passed over, and what was known of them at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.candidates import known_events, latest_sequences, positive
from lakerec.config import Config, Training
from lakerec.policy import excluded


def cuts(as_of: date, training: Training) -> list[tuple[date, str]]:
    """The cut days of a snapshot and their splits, oldest first, each a horizon apart.

    The horizon of the test cut ends with `as_of`, that of the last training cut with the valid cut:
    no training target lies behind it.
    """
    splits = ["train"] * training.cuts + ["valid", "test"]
    horizon = timedelta(days=training.horizon_days)
    return [(as_of - (len(splits) - i) * horizon, split) for i, split in enumerate(splits)]


def behind(events: DataFrame, cut: date, horizon_days: int, known_until: date, types: Sequence[str]) -> DataFrame:
    """user_id, item_id of events of some types on the `horizon_days` days behind the cut, known by `known_until`."""
    inside = F.date_diff("event_date", F.lit(cut)).between(1, horizon_days)
    found = known_events(events, known_until).where(inside & F.col("event_type").isin(list(types)))
    return found.select("user_id", "item_id").distinct()


def target_types(types: Sequence[str], weights: Mapping[str, float]) -> list[str]:
    """The event types that make a target: those configured, else all with a positive weight."""
    return list(types) or positive(weights)


def examples(
    events: DataFrame,
    sequences: DataFrame,
    cut: date,
    split: str,
    known_until: date,
    config: Config,
    types: Sequence[str] = (),
) -> DataFrame:
    """Rows of ml.examples (but snapshot_id): everyone with a target behind the cut, and their sequence's text.

    The text is null for users who were not known at the cut. What policy.filter_types takes out of a list can be no
    target either: the protocol then is "new items only". Passed over is what was shown and not answered by any event
    that speaks for an item, be it of a target's type or not.
    """
    taken = excluded(events, cut, config.policy.filter_types)
    horizon, impressions = config.scorer.training.horizon_days, config.scorer.training.impressions
    wanted_types = target_types(types, config.event_types)
    chosen = behind(events, cut, horizon, known_until, wanted_types)
    shown = behind(events, cut, horizon, known_until, impressions)
    answers = sorted({*wanted_types, *positive(config.event_types)})
    answered = behind(events, cut, horizon, known_until, answers)
    wanted = _by_user(chosen.join(taken, on=["user_id", "item_id"], how="left_anti"), "targets")
    passed = _by_user(shown.join(answered, on=["user_id", "item_id"], how="left_anti"), "passed_over")
    told = latest_sequences(sequences, cut).select("user_id", F.col("text").alias("history"))
    found = wanted.join(told, on="user_id", how="left").join(passed, on="user_id", how="left")
    return found.select(
        F.concat("user_id", F.lit(f"@{cut.isoformat()}")).alias("example_id"),
        "user_id",
        F.lit(cut).alias("cut_date"),
        F.lit(split).alias("split"),
        "history",
        "targets",
        F.coalesce("passed_over", F.array()).alias("passed_over"),
    )


def _by_user(pairs: DataFrame, name: str) -> DataFrame:
    """user_id and their items, sorted, as column `name`."""
    return pairs.groupBy("user_id").agg(F.sort_array(F.collect_set("item_id")).alias(name))


def sample(examples: DataFrame, limit: int, seed: int) -> DataFrame:
    """At most `limit` examples, drawn by hash of seed and example_id."""
    return examples.orderBy(F.xxhash64(F.lit(seed), "example_id"), "example_id").limit(limit)


def manifest(
    as_of: date,
    inputs: Mapping[str, int],
    splits: Sequence[tuple[date, str]],
    counts: Mapping[str, int],
    config_hash: str,
) -> dict[str, Any]:
    """What a snapshot is made of: versions of the inputs, cut days, examples per split, settings."""
    return {
        "as_of": as_of.isoformat(),
        "inputs": dict(inputs),
        "cuts": [[cut.isoformat(), split] for cut, split in splits],
        "counts": dict(counts),
        "config_hash": config_hash,
    }


def snapshot_id(manifest: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the manifest as JSON with sorted keys."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
