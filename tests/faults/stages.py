"""A small deployment as it is before each step of the chain, and what its tables hold without what names a run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import LAKE_STEPS, Shop, day_after, event

DAYS, PEOPLE = 6, 240  # enough people for several buckets
TRAINING = ("build_patterns", "build_examples", "train_scorer", "evaluate_scorer", "promote_scorer")
CHAIN = (*LAKE_STEPS, "embed_items", *TRAINING, "score_candidates", "publish_recommendations")
NEXT = dict(zip(CHAIN, (*CHAIN[1:], "end"), strict=True))
# What names a run or a moment, and is another one in every lake.
OWN = {"run_id", "started_at", "seconds", "published_at"}
Rows = list[dict[str, Any]]


def deliver(shop: Shop) -> None:
    """Six days of purchases, with late events, an event delivered twice and a torn row."""
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        rows = [event(1000 * n + m, f"u{m}", day_after(n), item=f"i{m % 3}") for m in range(PEOPLE)]
        late = [event(900 + n, "u9", day_after(n - 1)), event(1000 * n - 1000, "u0", day_after(n - 1))] if n else []
        shop.deliver(day_after(n), [*rows, *late, "torn"])


@dataclass
class Stages:
    """The deployment's folder as it is before each step, and at the `end`: made as far as it is asked for."""

    shop: Shop
    made: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, shop: Shop) -> Stages:
        """A deployment whose files are there, and no lake."""
        shop.folder.mkdir()
        shop.settings["scorer"] |= {"language_model": "always"}
        shop.settings["scorer"]["training"] |= {"targets": ["purchase"], "epochs": 4, "patience": 4}
        shop.settings["lease"] = {"wait_seconds": 60}
        deliver(shop)
        assert shop.config
        return cls(shop)

    def __getitem__(self, step: str) -> Path:
        while step not in self.made:
            self._next()
        return self.made[step]

    def _next(self) -> None:
        done = [each for each in CHAIN if each in self.made]
        if done:
            self.shop.run(done[-1], days=DAYS)
        step = NEXT[done[-1]] if done else CHAIN[0]
        self.made[step] = self.shop.folder.with_name(step)
        shutil.copytree(self.shop.folder, self.made[step], ignore=shutil.ignore_patterns("_serving"))


def state(shop: Shop, *names: str) -> dict[str, Rows]:
    """The tables' rows without what names a run or a moment; floats as far as two processes agree."""
    return {name: [plain(row) for row in shop.rows(name)] for name in names}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in row.items() if name not in OWN}
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in told.items()}
