"""A small shop whose people have planted tastes, as a World with its examples, and a quick training of it."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pandas as pd

from lakerec.config import ITEM_ENTITY, Config
from lakerec.generators.popularity import DailyCounts, PatternPopular
from lakerec.scorer.bundle import Bundle
from lakerec.scorer.nightly import train
from lakerec.scorer.serving_day import ShelfOfDay
from lakerec.world import World, day_number, end_of, world

FIRST, LAST, HORIZON = date(2026, 3, 1), date(2026, 4, 9), 6
WEIGHTS = {"buy": 5.0, "return": -5.0, "view": 1.0}
TASTES, EACH = 3, 5  # tastes of people and items, items of a taste
ITEMS = [f"i{n:02d}" for n in range(TASTES * EACH)]
PEOPLE = [f"u{n:02d}" for n in range(24)]
NEWCOMER = "zz newcomer"
CUTS = [
    (LAST - timedelta(days=HORIZON * (4 - n)), split) for n, split in enumerate(["train", "train", "valid", "test"])
]
COLOURS = ["red", "blue", "green"]


def make_events(seed=0, people=PEOPLE, visits=9):
    """Rows of event_columns: everyone walks through the items of their taste, with a stray item now and then."""
    rng = np.random.default_rng(seed)
    first, days = day_number(FIRST), (LAST - FIRST).days + 1
    rows = []
    for number, user in enumerate(people):
        for start in np.sort(rng.integers(0, days, visits)):
            place = rng.integers(EACH)
            for step in range(rng.integers(1, 4)):
                own = EACH * (number % TASTES) + (place + step) % EACH
                item = own if rng.random() < 0.85 else rng.integers(len(ITEMS))
                kind = rng.choice(["buy", "view", "return"], p=[0.4, 0.5, 0.1])
                day = first + start + 0.4 + step / 100
                rows.append((user, ITEMS[item], kind, day, first + min(start + rng.integers(3) // 2, days - 1)))
    return frame_of(rows)


def frame_of(rows):
    """Events in a total order."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "event_type", "day", "ingest"])
    frame = frame.astype({"day": float, "ingest": int})
    return frame.sort_values(["day", "user_id", "item_id"], kind="stable").reset_index(drop=True)


def make_items(first=FIRST):
    """Rows of item_columns: a taste has a colour; the last item has no text, one is listed on the tenth day only."""
    since = day_number(first)
    return pd.DataFrame(
        {
            "item_id": ITEMS,
            "valid_from": [since + (9 if n == 2 else 0) for n in range(len(ITEMS))],
            "valid_to": np.nan,
            "first_seen": [since + (9 if n == 2 else 0) for n in range(len(ITEMS))],
            "text_hash": [f"hash {n}" for n in range(len(ITEMS))],
            "told": [f"{COLOURS[n // EACH]} thing {n % EACH}" for n in range(len(ITEMS))],
            "price": [np.nan if n % 7 == 0 else 1.0 + n for n in range(len(ITEMS))],
            "attributes": [{"colour": COLOURS[n // EACH]} for n in range(len(ITEMS))],
        }
    )


def make_vectors():
    """A vector of each text, like within a taste; none for the last item."""
    rng = np.random.default_rng(7)
    vectors = np.eye(4)[np.arange(len(ITEMS)) // EACH] + rng.normal(scale=0.3, size=(len(ITEMS), 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {f"hash {n}": vector.astype(np.float32) for n, vector in enumerate(vectors[:-1])}


def make_triples():
    """Two makers, and two items that follow one another in a circle; an entity that no item has."""
    since = day_number(FIRST)
    links = [(item, ITEM_ENTITY, f"e{item}", since) for item in ITEMS[:6]]
    makers = [(f"e{item}", "made_by", f"m{n % 2}", since) for n, item in enumerate(ITEMS[:6])]
    circle = [
        ("ei00", "follows", "ei01", since),
        ("ei01", "follows", "ei00", since),
        ("nobody", "follows", "ei01", since),
    ]
    return pd.DataFrame([*links, *makers, *circle], columns=["head", "relation", "tail", "since"])


def make_patterns(people=PEOPLE):
    """Everyone's taste as a behaviour pattern, known from the first day; the last person has none."""
    told = [(user, day_number(FIRST), n % TASTES) for n, user in enumerate(people[:-1])]
    return pd.DataFrame(told, columns=["user_id", "day", "pattern_id"])


def make_world(events=None, items=None, **more) -> World:
    """The shop; other events or items where given."""
    given = {"patterns": make_patterns(), **more}
    frames = make_events() if events is None else events, make_items() if items is None else items
    return world(*frames, make_vectors(), make_triples(), WEIGHTS, **given)


def make_examples(events=None, cuts=CUTS, horizon=HORIZON):
    """Rows of ml.examples: who chose what on the days behind each cut; nobody was shown anything."""
    events = make_events() if events is None else events
    rows = []
    for cut, split in cuts:
        day = day_number(cut)
        behind = (np.floor(events["day"]) > day) & (np.floor(events["day"]) <= day + horizon)
        chosen = events[behind & events["event_type"].isin(["buy", "view"])]
        known = events[events["ingest"] <= day].groupby("user_id")["item_id"].agg(" ".join)
        for user, items in chosen.groupby("user_id")["item_id"]:
            targets, nothing = np.array(sorted(set(items)), dtype=object), np.array([], dtype=object)
            rows.append((cut, split, user, known.get(user), targets, nothing))
    return pd.DataFrame(rows, columns=["cut_date", "split", "user_id", "history", "targets", "passed_over"])


def make_config(tiny, generators=None, filtered=(), **scorer) -> Config:
    """A deployment whose training takes seconds."""
    columns = dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "event_time"), "x")
    few = {
        name: {} for name in generators or ("popular", "personal", "new", "ease", "markov", "pattern", "text", "graph")
    }
    settings = {
        "model": str(tiny),
        "language_model": "never",
        "history_tokens": 24,
        "candidate_tokens": 6,
        "retriever": {"size": 8, "window": 8, "epochs": 2, "patience": 2},
        "ranker": {"depth": 10, "negatives": 12, "folds": 2, "rounds": 12, "patience": 4, "min_leaf": 5},
        "training": {"freeze": "head", "epochs": 1, "horizon_days": HORIZON, "cuts": 2, "max_slates": 60},
    }
    return Config.model_validate(
        {
            "lake": "lake",
            "sources": {"events": {"path": "{date}.csv", "columns": columns}},
            "event_types": WEIGHTS,
            "candidates": {"per_user": 6, "popular_days": 10, "generators": few},
            "policy": {"k": 4, "filter_types": list(filtered)},
            "scorer": {**settings, **scorer},
        }
    )


def run(out, config, events=None, examples=None, lines=None, champion: Bundle | None = None, last=LAST, **more):
    """Train a version into `out`; the report."""
    told = make_examples() if examples is None else examples
    say = (lambda _: None) if lines is None else lines.append
    return train(make_world(events, **more), told, last, config, out, 1, say, champion)


def shelf_of(world, day=LAST, **changes) -> ShelfOfDay:
    """A world's day as the workers read it."""
    known = world.known(day)
    made = ShelfOfDay(
        items=world.items.tolist(),
        texts=world.texts(day).tolist(),
        shelf=world.shelf(day),
        stock=world.stock(day, DailyCounts.of(known)),
        on_shelf=world.on_shelf(day),
        patterns=PatternPopular.fit(known, world.shelf(day)).shares,
        weights=dict(WEIGHTS),
        kinds=world.kinds,
        at=end_of(day),
    )
    return replace(made, **changes)


def readings_of(events, people=PEOPLE):
    """What a worker reads of each user; the newcomer has nothing but a name."""
    rows = []
    groups = dict(zip(make_patterns()["user_id"], make_patterns()["pattern_id"], strict=True))
    for user in [*people, NEWCOMER]:
        mine = events[events["user_id"] == user]
        known = len(mine) > 0
        rows.append(
            {
                "user_id": user,
                "history": " ".join(mine["item_id"]) if known else None,
                "items": mine["item_id"].to_numpy(dtype=object) if known else None,
                "types": mine["event_type"].to_numpy(dtype=object) if known else None,
                "days": mine["day"].to_numpy() if known else None,
                "taken": None,
                "pattern": float(groups.get(user, np.nan)),
                "profile": None,
            }
        )
    return pd.DataFrame(rows)
