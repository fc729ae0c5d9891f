"""The parts of a cut's people and targets that have figures of their own: one definition for whoever judges a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lakerec import metrics
from lakerec.features import Stock
from lakerec.generators.popularity import ALWAYS
from lakerec.protocols import Mask, Part, pairs

PAIRED = "ndcg@10"
SEARCHED = ("users who", "searched")  # together a slice's name, as of an attribute and its value
ONLY_TOLD = ("repeat items", "explore items", " ".join(SEARCHED))  # and no more: no promotion depends on them
Ranks = NDArray[np.float64]


@dataclass(frozen=True)
class Slices:
    """Masks by name: of a part's people (users,), and of its targets (t,)."""

    part: Part
    people: Mapping[str, Mask]
    targets: Mapping[str, Mask]

    @classmethod
    def of(cls, part: Part, stock: Stock) -> Slices:
        """People by the length of their history, targets by popularity and by whether the person had chosen them.

        All as known at the cut. Repeat and explore items: Li et al. 2023, "A next basket recommendation reality check".
        """
        lengths, day = part.histories.lengths, float(part.histories.at.max(initial=0.0))
        people = {"all": lengths > 0} | {
            f"{name} users" if name == "new" else f"{name} histories": mask
            for name, mask in metrics.user_slices(lengths).items()
        }
        counts = stock.daily.within(day, ALWAYS)
        targets = metrics.target_slices(part.target_items, counts) | _chosen_before(part)
        return cls(part, people, {f"{name} items": mask for name, mask in targets.items()})

    def by_user(self, ranks: Ranks) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
        """Each slice with its figures (users,) by the ranks (t,) of the targets, nan for who is not in it."""
        whole = metrics.by_user(ranks, self.part.target_starts)
        for name, mask in self.people.items():
            yield name, {metric: np.where(mask, values, np.nan) for metric, values in whole.items()}
        for name, mask in self.targets.items():
            counted = np.bincount(self.part.target_users[mask], minlength=len(self.part))
            inside = np.append(0, np.cumsum(counted)).astype(np.int64)
            yield name, metrics.by_user(ranks[mask], inside)

    def paired(
        self, ranks: Ranks, others: Ranks, seed: int, names: Collection[str] | None = None
    ) -> dict[str, metrics.Comparison]:
        """The gain in NDCG@10 of ranks (t,) over others on the same people, in each slice or in those named."""
        both = zip(self.by_user(ranks), self.by_user(others), strict=True)
        return {
            name: metrics.paired(mine[PAIRED], theirs[PAIRED], seed)
            for (name, mine), (_, theirs) in both
            if names is None or name in names
        }


def _chosen_before(part: Part) -> dict[str, Mask]:
    """Masks (t,) of the targets that the person had chosen before, and of those that not."""
    known, n_items = part.histories.chosen(), part.histories.n_items
    wanted = pairs(part.target_users, part.target_items, n_items)
    repeat = np.isin(wanted, pairs(known.users, known.items, n_items))
    return {"repeat": repeat, "explore": ~repeat}
