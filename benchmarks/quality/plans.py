"""The committed configuration of each data set: chosen on validation, before the one run on the test part.

A generator without settings here is tuned on validation in the run itself, over the grid of its MEMBERS entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from benchmarks.quality.models import Arm

from lakerec.config import Ranker
from lakerec.generators import Settings
from lakerec.protocols import GlobalTime, LeaveOneOut
from lakerec.scorer.retriever import RetrieverSettings

Pair = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """One protocol of a data set; `lessons`, `cuts`, `tests` and `timed` as in courses.course.

    paired: only the rankers, for a paired gain over more targets. refit: the ranker that also learns the validation
    targets. settings: as in Plan, where they differ.
    """

    protocol: LeaveOneOut | GlobalTime
    lessons: int = 5
    cuts: int = 1
    tests: int = 1
    timed: bool = False
    paired: bool = False
    refit: bool = True
    settings: Mapping[str, Settings] | None = None

    @property
    def comparable(self) -> bool:
        """Whether published figures are of this protocol."""
        return isinstance(self.protocol, LeaveOneOut) and self.tests == 1 and not self.timed


@dataclass(frozen=True)
class Plan:
    """What is run on a data set. warm: epochs of a retriever that goes on at a later cut; arms: further retrievers."""

    tables: Sequence[Table]
    generators: Sequence[str]
    settings: Mapping[str, Settings] = field(default_factory=dict)
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings)
    warm: int = 3
    arm: Arm = field(default_factory=Arm)
    arms: Sequence[Arm] = ()
    ranker: Ranker = field(default_factory=Ranker)
    seeds: Sequence[int] = (17, 18, 19)
    pairs: Sequence[Pair] = ()


def day(text: str) -> float:
    """An ISO date in days since 1970-01-01."""
    return float((date.fromisoformat(text) - date(1970, 1, 1)).days)


WITHOUT = "ranker without retriever"
PAIRS: Sequence[Pair] = (
    ("ranker", WITHOUT),
    ("ranker refit", "ranker"),
    ("ranker", "retriever"),
    (WITHOUT, "blend"),
    ("retriever", "ease"),
    ("spark_als", "als"),
)
FILMS = (
    "popular",
    "trending",
    "ease",
    "ease_visits",
    "item_knn",
    "item_knn_visits",
    "markov_1",
    "markov_3",
    "markov",
    "user_knn",
    "als",
    "text",
    "text_last",
)
AGAIN = ("personal", "personal_decayed")
OF_DAYS = ("rising", "new")

ML_LATEST_SMALL = Plan(
    # Cuts and members were chosen on the targets five to nine from the end. The pooled table is tuned anew: the last
    # event but one, on which these settings were chosen, is a target there.
    tables=(
        Table(LeaveOneOut(), cuts=3),
        Table(LeaveOneOut(), cuts=3, tests=5, paired=True, refit=False, settings={}),
    ),
    retriever=RetrieverSettings(members=3),
    generators=FILMS,
    settings={
        "popular": {"days": 1e9},
        "trending": {"days": 365.0},
        "ease": {"penalty": 300.0, "keep": 0.8},
        "ease_visits": {"penalty": 100.0, "keep": 0.8},
        "item_knn": {"keep": 0.8, "neighbours": 500, "shrink": 20.0},
        "item_knn_visits": {"keep": 0.8, "neighbours": 500, "shrink": 10.0},
        "markov_1": {"span": 2, "fade": 0.5, "length": 1, "keep": 1.0},
        "markov_3": {"span": 3, "fade": 0.8, "length": 3, "keep": 0.8},
        "markov": {"span": 10, "fade": 0.8, "length": 10, "keep": 0.8},
        "user_knn": {"keep": 0.95, "neighbours": 100},
        "als": {"alpha": 1.0, "reg": 0.3, "size": 32},
        "text": {"length": 5, "keep": 0.7},
        "text_last": {"length": 3, "keep": 0.6},
    },
    pairs=PAIRS,
)
ML_1M = Plan(
    tables=(
        Table(LeaveOneOut(), lessons=3),
        Table(LeaveOneOut(ties="shuffled"), lessons=3, refit=False),
        Table(LeaveOneOut(), lessons=3, timed=True, refit=False),
    ),
    generators=FILMS,
    retriever=RetrieverSettings(
        size=128,
        heads=4,
        window=200,
        dropout=0.2,
        id_dropout=0.05,
        learning_rate=1e-3,
        ema=0.999,
        patience=3,
        max_minutes=30.0,
    ),
    pairs=PAIRS,
)
_ARMS = (
    Arm("retriever ids", text="none"),
    Arm("retriever text"),
    Arm("retriever graph", text="none", graph=True),
    Arm("retriever permuted text", text="permuted"),
    Arm("retriever text graph", graph=True),
)
ML_100K = Plan(
    # The last 44 of 215 days; most of their people are new, so that profiles have something to say. They rate in one
    # sitting: what a sequence tells is seen where each rating is scored with those before it.
    tables=(
        Table(GlobalTime(day("1998-03-10"), 44.0), lessons=2),
        Table(GlobalTime(day("1998-03-10"), 44.0, each=20), lessons=2),
    ),
    generators=(*FILMS, *OF_DAYS, "graph", "profile"),
    arm=Arm("retriever", graph=True, profile=True),
    arms=_ARMS,
    pairs=(
        *PAIRS,
        ("retriever text", "retriever ids"),
        ("retriever graph", "retriever ids"),
        ("retriever text graph", "retriever ids"),
        ("retriever text graph", "retriever text"),
        ("retriever permuted text", "retriever ids"),
        ("retriever", "retriever text graph"),
        ("retriever text", "popular"),
        ("retriever", "popular"),
    ),
)
_MONTH = GlobalTime(day("2011-11-10"), 30.0, first_basket=True)
ONLINE_RETAIL = Plan(
    tables=(
        Table(GlobalTime(_MONTH.cut, _MONTH.horizon, first_basket=True, repeats=True), lessons=5),
        Table(_MONTH, lessons=5),
    ),
    generators=(*FILMS, *OF_DAYS, *AGAIN),
    pairs=(*PAIRS, ("ranker", "personal"), (WITHOUT, "personal")),
)
PLANS: Mapping[str, Plan] = {
    "ml_latest_small": ML_LATEST_SMALL,
    "ml_1m": ML_1M,
    "ml_100k": ML_100K,
    "online_retail": ONLINE_RETAIL,
}

# What others report, (data, protocol) -> model -> metric; full catalogue, leave-one-out.
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "ml_latest_small": {"LlamaRec-7B (Yue et al. 2023)": {"hr@10": 0.1524, "ndcg@10": 0.0759}},
    "ml_1m": {"SASRec, full cross-entropy (Klenitskiy, Vasilev 2023)": {"hr@10": 0.3152, "ndcg@10": 0.1821}},
}
