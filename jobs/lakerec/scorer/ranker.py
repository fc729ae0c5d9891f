"""The final ranker: LightGBM LambdaRank over candidates' features, cross-fitted over people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from lakerec.config import Ranker as Settings
from lakerec.errors import NotEnoughDataError
from lakerec.features import Candidates
from lakerec.histories import Floats

AT = 10  # early stopping looks at NDCG@10


@dataclass(frozen=True)
class Lessons:
    """Candidates with labels: features (n, f), labels (n,), query (n,) ascending from 0, person (n,).

    start (n,): scores that the boosters begin at and only correct; without: 0.
    """

    features: Floats
    labels: NDArray[np.int8]
    query: NDArray[np.int64]
    person: NDArray[np.int64]
    start: Floats | None = None

    @classmethod
    def of(cls, found: Candidates, positives: NDArray[np.bool_], people: NDArray, negatives: int, seed: int) -> Lessons:
        """The people whose candidates hold a positive, with about `negatives` others each, drawn by seed."""
        size = np.bincount(found.person)[found.person] if len(found) else np.zeros(0)
        drawn = np.random.default_rng(seed).random(len(found)) < negatives / np.maximum(size, 1)
        holds = np.bincount(found.person, weights=positives, minlength=len(people)) > 0
        kept = np.flatnonzero(holds[found.person] & (drawn | positives)) if len(found) else np.zeros(0, dtype=int)
        person = found.person[kept]
        query = np.unique(person, return_inverse=True)[1]
        return cls(found.features[kept], positives[kept].astype(np.int8), query, people[person])

    @classmethod
    def none(cls, features: int) -> Lessons:
        """No candidates."""
        nobody = np.zeros(0, dtype=np.int64)
        return cls(np.zeros((0, features), dtype=np.float32), nobody.astype(np.int8), nobody, nobody)

    @classmethod
    def joined(cls, parts: Sequence[Lessons]) -> Lessons:
        """Several lessons as one; their queries stay apart."""
        ends = np.cumsum([0] + [part.queries for part in parts])
        columns = ([getattr(part, name) for part in parts] for name in ("features", "labels", "person"))
        features, labels, person = (np.concatenate(column) for column in columns)
        query = np.concatenate([part.query + end for part, end in zip(parts, ends, strict=False)])
        return cls(features, labels, query, person)

    @property
    def queries(self) -> int:
        """Number of queries."""
        return int(self.query[-1]) + 1 if len(self.query) else 0

    def where(self, mask: NDArray[np.bool_]) -> Lessons:
        """Whole queries where `mask` (n,) holds."""
        query = np.unique(self.query[mask], return_inverse=True)[1]
        start = None if self.start is None else self.start[mask]
        return Lessons(self.features[mask], self.labels[mask], query, self.person[mask], start)

    def dataset(self, names: Sequence[str], reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        """As LightGBM reads it."""
        return lightgbm.Dataset(
            self.features,
            self.labels,
            group=np.bincount(self.query),
            init_score=self.start,
            feature_name=list(names),
            reference=reference,
            params={"verbose": -1, "max_bin": 127},
            free_raw_data=False,
        )


@dataclass(frozen=True)
class Ranker:
    """One booster a fold of people, stopped where it ranks that fold best; together they score as their mean."""

    boosters: list[lightgbm.Booster]
    names: list[str]

    @classmethod
    def fit(cls, lessons: Lessons, names: Sequence[str], settings: Settings, threads: int) -> Ranker:
        """LambdaRank (Burges 2010) in LightGBM (Ke et al. 2017); NotEnoughDataError with fewer than two people."""
        folds = min(settings.folds, len(np.unique(lessons.person)))
        if folds < 2:
            raise NotEnoughDataError(
                "the final ranker needs two people with a target among their candidates: load more days"
            )
        # Of a handful of people one fold may hold all: then as many folds as tell two of them apart.
        folds = next(k for k in count(folds) if len(np.unique(_folds(lessons.person, k))) > 1)
        fold = _folds(lessons.person, folds)
        return cls([_boost(lessons, fold == k, names, settings, threads) for k in range(folds)], list(names))

    def score(self, features: Floats) -> Floats:
        """(n,) float32: the boosters' mean, the greater the better."""
        if not len(features):
            return np.zeros(0, dtype=np.float32)
        return np.mean([booster.predict(features) for booster in self.boosters], axis=0).astype(np.float32)

    def unseen(self, features: Floats, person: NDArray[np.int64]) -> Floats:
        """(n,) float32: each person's candidates by the booster that did not learn from that person."""
        found = np.zeros(len(features), dtype=np.float32)
        fold = _folds(person, len(self.boosters))
        for k, booster in enumerate(self.boosters):
            if (fold == k).any():
                found[fold == k] = booster.predict(features[fold == k])
        return found

    def gains(self) -> dict[str, float]:
        """Share of the total gain by feature, largest first."""
        total = np.sum([booster.feature_importance("gain") for booster in self.boosters], axis=0)
        share = total / max(float(total.sum()), 1e-12)
        return {self.names[i]: float(share[i]) for i in np.argsort(-share, kind="stable")}

    def text(self) -> list[str]:
        """The boosters in LightGBM's text format."""
        return [booster.model_to_string() for booster in self.boosters]

    @classmethod
    def restore(cls, texts: Sequence[str]) -> Ranker:
        """From `text`; ValueError where that is no booster."""
        try:
            boosters = [lightgbm.Booster(model_str=text) for text in texts]
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
        return cls(boosters, boosters[0].feature_name())

    def save(self, folder: Path, name: str) -> None:
        """A file for each booster, into a folder that is there."""
        for place, text in enumerate(self.text()):
            (folder / f"{name}-{place}.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> Ranker:
        """What `save` wrote under a name; OSError, ValueError or IndexError where that is no ranker."""
        files = sorted(folder.glob(f"{name}-*.txt"), key=lambda file: int(file.stem.split("-")[1]))
        return cls.restore([file.read_text(encoding="utf-8") for file in files])


def _folds(person: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """The fold of each person: the same for a person in whatever lesson."""
    return (person * 2654435761 % 2**32) % folds


def _boost(
    lessons: Lessons, held: NDArray[np.bool_], names: Sequence[str], settings: Settings, threads: int
) -> lightgbm.Booster:
    train, valid = lessons.where(~held), lessons.where(held)
    learn = train.dataset(names)
    judged = [valid.dataset(names, learn)] if valid.queries else [learn]
    stop = lightgbm.early_stopping(settings.patience, first_metric_only=True, verbose=False)
    # A shop of a few users has fewer candidates than a leaf would need.
    leaf = max(1, min(settings.min_leaf, len(train.labels) // 40))
    booster = lightgbm.train(_parameters(settings, leaf, threads), learn, settings.rounds, judged, callbacks=[stop])
    # As text and back: the training's arrays go, and what is kept is what is saved.
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def _parameters(settings: Settings, leaf: int, threads: int) -> dict[str, Any]:
    return {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [AT],
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": leaf,
        "lambdarank_truncation_level": 2 * AT,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": min(5.0, leaf / 10),
        "seed": settings.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbose": -1,
    }
