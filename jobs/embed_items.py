"""Text vectors of the items and profiles whose text is new: each text is encoded once per language model."""

from __future__ import annotations

from typing import Any

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
    """Append the vectors of texts that the model has not encoded yet."""
    name = job.config.scorer.model
    model = model_id(name)
    with job.lake.lease():
        job.lake.complete(TABLE)
        known = job.lake.read(TABLE).where(F.col("model_id") == model)
        items = job.lake.read("silver.items").select("text_hash", "text")
        profiles = profile_columns(job.lake.read("silver.users")).select("text_hash", "text")
        new = items.unionByName(profiles).distinct().join(known, on="text_hash", how="left_anti")
        count = new.count()
        if count:
            encode = text_embedder(name, task_threads(job.spark))
            workers = min(job.spark.sparkContext.defaultParallelism, 1 + count // TEXTS_PER_WORKER)
            vectors = new.repartition(workers).mapInPandas(encode, "text_hash string, vector array<float>")
            job.lake.append(TABLE, vectors.select(F.lit(model).alias("model_id"), "text_hash", "vector"))
            job.lake.record([job.run.row("ok", {"written": count, "model": model})])
    return {"encoded": count, "model": model}


if __name__ == "__main__":
    main(run)
