"""Text vectors of the items and profiles whose text is new: each text is encoded once per language model."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lakerec.collect import profile_columns
from lakerec.job import Job, main
from lakerec.scorer.base_model import model_id
from lakerec.scoring import text_embedder
from lakerec.session import task_threads

TABLE = "ml.item_embeddings"
# A worker takes seconds to load the model: fewer texts than this are done sooner by one.
TEXTS_PER_WORKER = 2000


def run(job: Job) -> dict[str, Any]:
    """Append the vectors of texts that the model has not encoded yet; encoded outside the lease, for it takes long."""
    model = model_id(job.config.scorer.model)
    new = _texts(job).join(_known(job, model), on="text_hash", how="left_anti")
    count = new.count()
    vectors = _encoded(job, model, new, count).persist()
    try:
        if count:
            vectors.count()
        with job.lake.lease():
            job.lake.complete(TABLE)
            if count:
                job.lake.append(TABLE, vectors.join(_known(job, model, newest=True), on="text_hash", how="left_anti"))
                job.lake.record([job.run.row("ok", {"written": count, "model": model})])
    finally:
        vectors.unpersist()
    return {"encoded": count, "model": model}


def _texts(job: Job) -> DataFrame:
    """text_hash and text of items and profiles."""
    items = job.lake.read("silver.items").select("text_hash", "text")
    profiles = profile_columns(job.lake.read("silver.users")).select("text_hash", "text")
    return items.unionByName(profiles).distinct()


def _known(job: Job, model: str, newest: bool = False) -> DataFrame:
    """text_hash of what the model has encoded; `newest`: also what others have meanwhile."""
    rows = job.lake.read(TABLE, job.lake.version(TABLE) if newest else None)
    return rows.where(F.col("model_id") == model).select("text_hash")


def _encoded(job: Job, model: str, texts: DataFrame, count: int) -> DataFrame:
    """model_id, text_hash and vector of so many texts."""
    encode = text_embedder(job.config.scorer.model, task_threads(job.spark))
    workers = min(job.spark.sparkContext.defaultParallelism, 1 + count // TEXTS_PER_WORKER)
    vectors = texts.repartition(workers).mapInPandas(encode, "text_hash string, vector array<float>")
    return vectors.select(F.lit(model).alias("model_id"), "text_hash", "vector")


if __name__ == "__main__":
    main(run)
