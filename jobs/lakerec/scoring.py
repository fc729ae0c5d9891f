"""The pandas-UDF side of the scorer: functions for Spark's mapInPandas; a worker loads its model once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from lakerec.scorer.language_model import TextEncoder
    from lakerec.scorer.prediction import Predictor
    from lakerec.scorer.serving_day import ScoringDay

BatchFunction = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]


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


def list_scorer(artefact: str, day: str, threads: int, per_user: int) -> BatchFunction:
    """For mapInPandas: user_id, history, items, types, days, taken, pattern -> user_id, item_id, score, source.

    Candidates, features, final ranker and the language model's correction, in one pass; score is P(positive) in
    float32 of the ranker's best `per_user`. `artefact` is the model's folder, `day` the file of the day's shelf.
    """

    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            if len(frame):
                predictor = _predictor(artefact, threads)
                yield _day(artefact, day).lists(frame, predictor, per_user)

    return score


def text_embedder(name: str, threads: int) -> BatchFunction:
    """For mapInPandas: text_hash, text -> text_hash, vector (of length 1); `name` as in scorer.model."""

    def embed(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            vectors = _encoder(name, threads).encode([_text(text) for text in frame["text"]])
            yield pd.DataFrame({"text_hash": frame["text_hash"], "vector": list(vectors)})

    return embed


def _text(value: Any) -> str:
    """A string column's value: NULL arrives as None or nan."""
    return value if isinstance(value, str) else ""
