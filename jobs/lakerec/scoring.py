"""The pandas-UDF side of the scorer: functions for Spark's mapInPandas; a worker loads its model once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from pyspark import TaskContext

from lakerec.errors import LakerecError

if TYPE_CHECKING:
    from lakerec.scorer.language_model import TextEncoder
    from lakerec.scorer.prediction import Predictor
    from lakerec.scorer.serving_day import ScoringDay

BatchFunction = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]
ListFunction = Callable[[pd.DataFrame], pd.DataFrame]

TOGETHER = 128  # users whose candidates and slates are held at a time, however large a bucket is
SCORED = "user_id string, item_id string, score float, source string"


@lru_cache(maxsize=1)
def _predictor(path: str, threads: int) -> Predictor:
    from lakerec.scorer.prediction import Predictor

    return Predictor.load(Path(path), threads)


@lru_cache(maxsize=1)
def _encoder(name: str, threads: int) -> TextEncoder:
    import torch

    from lakerec.scorer.language_model import TextEncoder

    torch.set_num_threads(threads)
    return TextEncoder(name)


@lru_cache(maxsize=1)
def _day(artefact: str, day: str) -> ScoringDay:
    from lakerec.scorer.serving_day import ScoringDay

    return ScoringDay.load(Path(artefact), Path(day))


def own_gpu() -> None:
    """Show CUDA only the GPU that Spark gave this task, where it gave one; nothing has used CUDA here before.

    Without it every task of a machine is on its first GPU. Spark's addresses are nvidia-smi's: places on the bus.
    What CUDA has read once stays: where an executor has several GPUs, session.py lets no worker take a second task.
    """
    context = TaskContext.get()
    if context and (gpu := context.resources().get("gpu")):
        os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpu.addresses)}


def list_scorer(artefact: str, day: str, threads: int, per_user: int) -> ListFunction:
    """A function of user_id, history, items, types, days, taken, pattern -> user_id, item_id, score, source.

    Candidates, features, final ranker and the language model's correction, in one pass; score is P(positive) in
    float32 of the ranker's best `per_user`. `artefact` is the model's folder, `day` the file of the day's shelf.
    """

    def score(frame: pd.DataFrame) -> pd.DataFrame:
        return _day(artefact, day).lists(frame, _predictor(artefact, threads), per_user)

    return score


def bucket_scorer(lists: ListFunction, place: str) -> BatchFunction:
    """For mapInPandas over users by their bucket: a file of lists for each bucket, renamed there when whole.

    What comes back is a row a bucket: bucket, users, failed, first_failure. A user who cannot be scored stops nobody
    else; what is wrong with the model or the day comes back as a row with `failed` -1.
    """

    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        own_gpu()
        for bucket, blocks in groupby(_blocks(frames), key=lambda block: int(block["bucket"].iloc[0])):
            try:
                users, failures = _bucket(lists, blocks, Path(place), bucket)
            except LakerecError as error:
                yield _told(bucket, 0, -1, str(error))
                return
            yield _told(bucket, users, len(failures), failures[0] if failures else None)

    return score


def _bucket(lists: ListFunction, blocks: Iterator[pd.DataFrame], place: Path, bucket: int) -> tuple[int, list[str]]:
    """Score and keep a bucket; its users and what failed."""
    users, found, failures = 0, [], []
    for block in blocks:
        rows, failed = _scored(lists, block)
        users += len(block)
        found.append(rows)
        failures += failed
    if len(failures) < users:
        _keep(pd.concat(found), bucket_file(place, bucket, users, len(failures)))
    return users, failures


def _told(bucket: int, users: int, failed: int, first_failure: str | None) -> pd.DataFrame:
    told = {"bucket": bucket, "users": users, "failed": failed, "first_failure": first_failure}
    return pd.DataFrame([told])


def _blocks(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The frames, cut where the bucket changes and after TOGETHER users."""
    for frame in frames:
        for _, block in frame.groupby("bucket", sort=False):
            for first in range(0, len(block), TOGETHER):
                yield block.iloc[first : first + TOGETHER].reset_index(drop=True)


def _scored(lists: ListFunction, block: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The lists of a block and what failed; where the block does, each user stands alone.

    Scores that are no numbers are a failure of their user. What is wrong with the model or the day is no user's fault:
    it ends the run.
    """
    try:
        return _numbers(lists(block))
    except LakerecError:
        raise
    except Exception:
        if len(block) == 1:
            cause = traceback.format_exc(limit=-1).strip().splitlines()[-1]
            empty = pd.DataFrame({"user_id": [], "item_id": [], "score": [], "source": []})
            return empty, [f"user {block['user_id'].iloc[0]}: {cause}"]
    alone = [_scored(lists, block.iloc[[row]].reset_index(drop=True)) for row in range(len(block))]
    return pd.concat([rows for rows, _ in alone]), [told for _, failed in alone for told in failed]


def _numbers(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The lists whose scores are numbers, and whose are not: Spark holds nan greater than any, it would come first."""
    unsound = sorted(set(rows.loc[~np.isfinite(rows["score"].astype(float)), "user_id"]))
    return rows[~rows["user_id"].isin(unsound)], [f"user {user}: scores that are no numbers" for user in unsound]


def _keep(rows: pd.DataFrame, file: Path) -> None:
    """Write a bucket's rows as parquet beside the file and rename."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    types = [("user_id", pa.string()), ("item_id", pa.string()), ("score", pa.float32()), ("source", pa.string())]
    parquet.write_table(pa.Table.from_pandas(rows, pa.schema(types), preserve_index=False), draft)
    draft.replace(file)


def bucket_file(place: Path, bucket: int, users: int, failed: int = 0) -> Path:
    """Where the lists of a bucket of so many users stand; one with failures is scored again by a later run."""
    return place / (f"partly-{bucket}-{users}-{failed}.parquet" if failed else f"bucket-{bucket}-{users}.parquet")


def buckets_in(place: Path) -> dict[int, int]:
    """The users of each bucket that is whole."""
    stems = (file.stem.split("-") for file in place.glob("bucket-*.parquet"))
    return {int(bucket): int(users) for _, bucket, users in stems}


def text_embedder(name: str, threads: int) -> BatchFunction:
    """For mapInPandas: text_hash, text -> text_hash, vector (of length 1); `name` as in scorer.model."""

    def embed(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        own_gpu()
        for frame in frames:
            vectors = _encoder(name, threads).encode([_text(text) for text in frame["text"]])
            yield pd.DataFrame({"text_hash": frame["text_hash"], "vector": list(vectors)})

    return embed


def _text(value: Any) -> str:
    """A string column's value: NULL arrives as None or nan."""
    return value if isinstance(value, str) else ""
