"""The pandas-UDF side of the scorer: functions for Spark's mapInPandas; a worker loads its model once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lakerec.scorer.slates import Slate

if TYPE_CHECKING:
    from lakerec.scorer.language_model import TextEncoder
    from lakerec.scorer.prediction import Predictor

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


def slate_scorer(path: str, threads: int) -> BatchFunction:
    """For mapInPandas: user_id, history, candidates -> user_id, item_id, score (P(positive), float32).

    candidates are array<struct<item_id, text, features>>; `path` is the artefact's folder.
    """

    def score(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            slates = [_slate(row.user_id, row) for row in frame.itertuples(index=False)]
            scores = _predictor(path, threads).score(slates)
            yield _scored(frame, scores)

    return score


def _scored(frame: pd.DataFrame, scores: Sequence[np.ndarray]) -> pd.DataFrame:
    candidates = [candidate for slate in frame["candidates"] for candidate in _list(slate)]
    items, sources = ([candidate[name] for candidate in candidates] for name in ("item_id", "source"))
    counts = [len(row) for row in scores]
    flat = np.concatenate([np.zeros(0, dtype=np.float32), *scores])
    users = frame["user_id"].repeat(counts).to_numpy()
    return pd.DataFrame({"user_id": users, "item_id": items, "score": flat, "source": sources})


def text_embedder(name: str, threads: int) -> BatchFunction:
    """For mapInPandas: text_hash, text -> text_hash, vector (of length 1); `name` as in scorer.model."""

    def embed(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            vectors = _encoder(name, threads).encode([_text(text) for text in frame["text"]])
            yield pd.DataFrame({"text_hash": frame["text_hash"], "vector": list(vectors)})

    return embed


def slates_from_frame(frame: pd.DataFrame) -> list[Slate]:
    """Slates of example_id, history, candidates (item_id, text, features, label), targets array<string>."""
    return [_slate(row.example_id, row, labelled=True) for row in frame.itertuples(index=False)]


def _slate(slate_id: Any, row: Any, labelled: bool = False) -> Slate:
    candidates = _list(row.candidates)
    features = [np.asarray(candidate["features"], dtype=np.float32) for candidate in candidates]
    return Slate(
        slate_id=str(slate_id),
        history=_text(row.history),
        texts=[_text(candidate["text"]) for candidate in candidates],
        features=np.stack(features) if features else np.zeros((0, 0), dtype=np.float32),
        labels=np.array([c["label"] for c in candidates], dtype=np.float32) if labelled else None,
        targets=len(_list(row.targets)) if labelled else 0,
    )


def _list(value: Any) -> Sequence[Any]:
    """An array column's value: NULL arrives as None."""
    return () if value is None else value


def _text(value: Any) -> str:
    """A string column's value: NULL arrives as None or nan."""
    return value if isinstance(value, str) else ""
