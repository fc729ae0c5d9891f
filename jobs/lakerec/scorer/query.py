"""A list for a query: items whose text is near, their neighbours in the graph, and a word of popularity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lakerec.generators.popularity import ALWAYS
from lakerec.scorer.serving_day import ShelfOfDay

SEEDS = 5  # hits whose neighbours in the graph count
NEIGHBOURS, POPULAR = 0.2, 0.05  # what graph and popularity weigh beside a standard deviation of the cosine


@dataclass(frozen=True)
class Hit:
    """An item for a query: cosine of the texts, and the score it is ranked by."""

    item_id: str
    text: str
    cosine: float
    score: float


def answer(day: ShelfOfDay, query: NDArray[np.float32], k: int) -> list[Hit]:
    """The `k` best items on the shelf for a query's text vector (d,), best first, ties by place in the catalogue."""
    cosine = day.shelf.text @ query
    score = _standard(cosine) + POPULAR * _standard(np.log1p(day.stock.daily.within(day.at, ALWAYS)))
    if day.shelf.graph is not None:
        seeds = np.argsort(-np.where(day.on_shelf, cosine, -np.inf), kind="stable")[:SEEDS]
        shared = np.asarray((day.shelf.graph @ day.shelf.graph[seeds].T).sum(axis=1)).ravel()
        score = score + NEIGHBOURS * _standard(shared)
    score = np.where(day.on_shelf, score, -np.inf)
    order = np.argsort(-score, kind="stable")[:k]
    kept = [place for place in order if np.isfinite(score[place])]
    return [Hit(day.items[p], day.texts[p], float(cosine[p]), float(score[p])) for p in kept]


def _standard(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-9), dtype=np.float64)
