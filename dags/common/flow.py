"""What each job reads and writes: its assets, so that Airflow's UI shows a table's way from file to site."""

from __future__ import annotations

from airflow.sdk import Asset

GROUP = "lakerec"
# What a snapshot pins for its training: lakerec.collect.INPUTS.
PINNED = (
    "silver.events",
    "ml.sequences",
    "silver.items",
    "silver.kg",
    "ml.item_embeddings",
    "ml.user_patterns",
    "silver.users",
)
TRAINED = ("ml.snapshots", "ml.examples", "ml.promotions", "models", *PINNED)
# job: (tables read, tables written), in whatever configuration. Left out are ops.runs, which all of them write, and
# what upkeep and audits look at: every table.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ingest_events": ((), ("bronze.events",)),
    "ingest_catalogue": ((), ("bronze.items", "bronze.users", "bronze.kg")),
    "conform_events": (("bronze.events", "ops.tombstones"), ("quarantine.events", "silver.events", "ops.dq_results")),
    "conform_catalogue": (
        ("bronze.events", "bronze.items", "bronze.users", "bronze.kg"),
        ("silver.items", "silver.users", "silver.kg", "ops.dq_results"),
    ),
    "build_sequences": (("silver.events", "silver.items"), ("ml.sequences",)),
    "embed_items": (("silver.items", "silver.users", "ml.item_embeddings"), ("ml.item_embeddings",)),
    "build_patterns": (
        ("silver.events", "silver.items", "ml.sequences", "ml.behaviour_patterns", "ml.user_patterns"),
        ("ml.behaviour_patterns", "ml.user_patterns"),
    ),
    "build_examples": (PINNED, ("ml.snapshots", "ml.examples")),
    "train_scorer": (TRAINED, ("models",)),
    "evaluate_scorer": (TRAINED, ("gold.model_metrics",)),
    "promote_scorer": (("models", "ml.snapshots", "gold.model_metrics", "ml.promotions"), ("ml.promotions",)),
    "rollback_scorer": (("models", "gold.recommendations", "ml.promotions"), ("ml.promotions",)),
    "score_candidates": (("ml.promotions", "models", *PINNED, "gold.recommendations"), ("gold.recommendations",)),
    "publish_recommendations": (("gold.recommendations",), ("serving.recommendations",)),
    "maintain_lake": ((), ("ops.table_sizes",)),
    "audit_lake": ((), ("ops.dq_results",)),
    "check_freshness": (("bronze.events", "gold.recommendations", "ops.runs", "serving.recommendations"), ()),
}
# Jobs that write of a window its last day alone.
OF_THE_LAST_DAY = {"score_candidates", "publish_recommendations", "maintain_lake", "audit_lake"}
# The newest day's tables up to the item vectors are there: scorer_nightly follows it. A rebuilt day does not add to it.
FEATURES = Asset("features", uri="lakerec://features", group=GROUP)


def asset(table: str) -> Asset:
    """A table as an asset; a partition of it is a day."""
    return Asset(table, uri=f"lakerec://{table.replace('.', '/')}", group=GROUP)


def inlets(job: str) -> list[Asset]:
    """What a job reads."""
    return [asset(table) for table in TABLES.get(job, ((), ()))[0]]


def outlets(job: str) -> list[Asset]:
    """What a job writes."""
    return [asset(table) for table in TABLES.get(job, ((), ()))[1]]
