"""What a person's candidates cost by the size of the catalogue: `make bench-candidates`.

Every source's scores, the nomination, the features; both ways at each size: with arrays of people x items, and with
sources that tell their best, between which `recommender.LARGE` chooses. Kept in results/candidates.json.

Made people of 30 events and items of 384 numbers of text; all generators, and a product that stands for a retriever's
network. One thread, CPU seconds; the ranker, which scores what is nominated, is left out. EASE's weights are drawn, not
fitted: its fit takes minutes and tells nothing here.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from benchmarks.record import keep
from numpy.typing import NDArray
from scipy import sparse

from lakerec import generators
from lakerec.features import Stock, candidates
from lakerec.generators.base import Generator, Shelf
from lakerec.generators.linear import Ease
from lakerec.generators.scores import Index, Products, Scores
from lakerec.histories import Histories
from lakerec.scorer import recommender
from lakerec.scorer.recommender import PEOPLE, FirstStage

EVENTS, DAYS, TEXT, SIZE, NODES, KNOWN = 30, 200, 384, 64, 200, 12_000
ITEMS = (4_000, 10_000, 30_000, 50_000, 300_000)


@dataclass(frozen=True)
class Network:
    """A retriever's last product: people drawn, items fixed."""

    index: Index

    def said(self, histories: Histories) -> Scores:
        """Log-probabilities."""
        people = np.random.default_rng(len(histories)).standard_normal((len(histories), SIZE), dtype=np.float32)
        return Products(people, self.index, self.index.normaliser(people))

    def score(self, histories: Histories) -> NDArray[np.float32]:
        """(users, items)."""
        return self.said(histories).whole()


def made(items: int, people: int) -> tuple[Histories, Shelf]:
    """A shop whose items are chosen the oftener the lower their number."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, items + 1) ** 0.8
    count = people * EVENTS
    text = rng.standard_normal((items, TEXT), dtype=np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    at = np.arange(items)
    graph = sparse.csr_matrix((np.ones(items, dtype=np.float32), (at, rng.integers(0, NODES, items))), (items, NODES))
    events = rng.integers(0, people, count), rng.choice(items, count, p=share / share.sum()), rng.random(count) * DAYS
    histories = Histories.of_events(*events, people, items)
    groups = rng.integers(0, 8, people).astype(np.int32)
    profiles = text[rng.integers(0, items, people)]
    return replace(histories, groups=groups, profiles=profiles), Shelf(text, graph, rng.random(items) * DAYS)


def fitted(name: str, histories: Histories, shelf: Shelf) -> Generator:
    """A generator, EASE with weights that are drawn."""
    kind = generators.MEMBERS[name].kind
    if kind is not Ease:
        return generators.fit(name, histories, shelf)
    size = min(KNOWN, histories.n_items)
    weights = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)
    return Ease(weights, np.arange(size), histories.n_items, 0.85)


def measured(items: int, known: int, asked: int) -> dict[str, Any]:
    """CPU milliseconds a person of each part."""
    histories, shelf = made(items, known)
    members = {name: fitted(name, histories, shelf) for name in generators.MEMBERS}
    vectors = np.random.default_rng(2).standard_normal((items, SIZE), dtype=np.float32)
    price = np.random.default_rng(3).random(items) * 100
    stage = FirstStage(members, Network(Index(vectors)), shelf, Stock.of(histories, price), 100, repeats=False)
    found: dict[str, Any] = {"items": items, "sources": len(stage.names)}
    large = recommender.LARGE
    for way, size in (("arrays", items), ("told", 0)):
        recommender.LARGE = size
        found[way] = _timed(stage, histories, asked)
    recommender.LARGE = large
    ratio = found["told"]["people_per_cpu_second"] / found["arrays"]["people_per_cpu_second"]
    return {**found, "ratio": round(ratio, 3), "line": large}


def _timed(stage: FirstStage, histories: Histories, asked: int) -> dict[str, Any]:
    some = histories.select(np.arange(asked))
    for _, mine in stage.blocks(histories.select(np.arange(asked, asked + 4))):
        stage.candidates(mine)
    spent, count, began = 0.0, 0, time.process_time()
    for _, mine in stage.blocks(some):
        scores, start = stage.scores(mine), time.process_time()
        count += len(candidates(scores, mine, stage.allowed(mine), stage.shelf, stage.stock, stage.depth))
        spent += time.process_time() - start
    whole = time.process_time() - began
    return {
        "candidates": round(count / asked),
        "sources_ms": round((whole - spent) / asked * 1e3, 2),
        "nomination_and_features_ms": round(spent / asked * 1e3, 2),
        "people_per_cpu_second": round(asked / whole, 1),
        "slowest": _slowest(stage, some),
    }


def _slowest(stage: FirstStage, people: Histories) -> dict[str, float]:
    """CPU milliseconds a person of the sources that take longest with their best, in one block."""
    mine = people.select(np.arange(min(len(people), PEOPLE)))
    given, took = stage.allowed(mine), {}
    for name in stage.names:
        began = time.process_time()
        stage.scores_of(name, mine).survey(given, stage.depth)
        took[name] = round((time.process_time() - began) / len(mine) * 1e3, 2)
    return dict(sorted(took.items(), key=lambda pair: -pair[1])[:8])


def main() -> None:
    """Measure each size and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[*ITEMS])
    parser.add_argument("--known", type=int, default=5_000, help="people that the sources are fitted on")
    asked = parser.parse_args()
    rows = [measured(items, asked.known, max(128, 2_000_000 // items)) for items in asked.items]
    if tuple(asked.items) == ITEMS:
        keep("speed", "candidates", {"unit": "people a CPU second, one thread", "rows": rows})
    else:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
