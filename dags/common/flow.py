"""What each job reads and writes: its assets, so that Airflow's UI shows a table's way from file to site."""

from __future__ import annotations

from airflow.sdk import Asset

GROUP = "lakerec"
# job: (tables read, tables written). ops.runs, which all of them write, is left out.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ingest_events": ((), ("bronze.events",)),
    "ingest_catalogue": (("bronze.events",), ("bronze.items", "bronze.users", "bronze.kg")),
    "conform_events": (("bronze.events", "ops.tombstones"), ("quarantine.events", "silver.events", "ops.dq_results")),
    "conform_catalogue": (
        ("bronze.items", "bronze.users", "bronze.kg"),
        ("silver.items", "silver.users", "silver.kg"),
    ),
    "build_sequences": (("silver.events",), ("ml.sequences",)),
    "embed_items": (("silver.items", "silver.users"), ("ml.item_embeddings",)),
    "build_patterns": (("ml.sequences",), ("ml.behaviour_patterns", "ml.user_patterns")),
    "build_examples": (("silver.events", "silver.items"), ("ml.snapshots", "ml.examples")),
    "train_scorer": (("ml.snapshots", "ml.examples", "ml.item_embeddings", "ml.user_patterns"), ("models",)),
    "evaluate_scorer": (("models", "ml.snapshots", "ml.examples"), ("gold.model_metrics",)),
    "promote_scorer": (("models", "gold.model_metrics"), ("ml.promotions",)),
    "rollback_scorer": (("models",), ("ml.promotions",)),
    "score_candidates": (
        ("ml.promotions", "models", "ml.sequences", "silver.events", "silver.items", "ml.item_embeddings"),
        ("gold.recommendations",),
    ),
    "publish_recommendations": (("gold.recommendations",), ("serving.recommendations",)),
    "maintain_lake": ((), ("ops.table_sizes",)),
    "audit_lake": ((), ("ops.dq_results",)),
    "check_freshness": (("gold.recommendations", "serving.recommendations"), ()),
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
