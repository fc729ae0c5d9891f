"""A lake's events and catalogue as arrays: what was known at a cut, for everyone (numpy and pandas)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from lakerec.config import ITEM_ENTITY
from lakerec.features import Stock
from lakerec.generators.base import Shelf
from lakerec.generators.popularity import DailyCounts
from lakerec.histories import Histories
from lakerec.protocols import Part

EPOCH = date(1970, 1, 1)
WIDEST_NODE = 0.5  # a node that touches more than this share of the items says nothing
ATTRIBUTE = "attribute"


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def end_of(day: date) -> float:
    """The last second of a day, in days since 1970-01-01: windows as of it hold the day itself."""
    return day_number(day) + 1 - 1 / 86400


@dataclass(frozen=True)
class World:
    """Everything that a training or a scoring may look at, by code: users and items in a fixed order.

    `events` has user, item, kind (codes), day, weight, ingest; `versions` of items item, valid_from, valid_to,
    first_seen, price, told, vector (a place in `vectors`, -1 for none); `edges` item, node, since; `patterns` user,
    day, pattern; `people` user, valid_from, valid_to, vector (of the profile). Node names are "relation|entity".
    """

    users: NDArray[np.object_]
    items: NDArray[np.object_]
    kinds: list[str]
    events: pd.DataFrame
    versions: pd.DataFrame
    vectors: NDArray[np.float32]
    edges: pd.DataFrame
    nodes: list[str]
    patterns: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"user": [], "day": [], "pattern": []}))
    people: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame({"user": [], "valid_from": [], "valid_to": [], "vector": []})
    )

    @cached_property
    def user_codes(self) -> dict[str, int]:
        """The code of each user."""
        return {user: code for code, user in enumerate(self.users)}

    @cached_property
    def item_codes(self) -> dict[str, int]:
        """The code of each item."""
        return {item: code for code, item in enumerate(self.items)}

    def known(self, cut: date) -> Histories:
        """Everyone's events that arrived by the end of `cut`, scored as of its end."""
        day = day_number(cut)
        mine = self.events[self.events["ingest"].to_numpy() <= day]
        columns = {name: mine[name].to_numpy() for name in ("user", "item", "day", "weight", "kind")}
        found = Histories.of_events(
            columns["user"],
            columns["item"],
            columns["day"],
            len(self.users),
            len(self.items),
            columns["weight"],
            columns["kind"],
            at=end_of(cut),
        )
        return replace(found, groups=self.groups(cut), profiles=self.profiles(cut))

    def profiles(self, cut: date) -> NDArray[np.float32] | None:
        """(users, d) the text vector of each person's profile as known on `cut`; None where nobody has one."""
        rows = held_on(self.people, day_number(cut))
        if not len(rows):
            return None
        found = np.zeros((len(self.users), self.vectors.shape[1]), dtype=np.float32)
        found[rows["user"].to_numpy(dtype=int)] = self.vectors[rows["vector"].to_numpy(dtype=int)]
        return found

    def groups(self, cut: date) -> NDArray[np.int32]:
        """(users,) each person's behaviour pattern by the newest patterns known on `cut`, -1 for none."""
        found = np.full(len(self.users), -1, dtype=np.int32)
        known = self.patterns[self.patterns["day"] <= day_number(cut)]
        if len(known):
            newest = known[known["day"] == known["day"].max()]
            found[newest["user"].to_numpy(dtype=int)] = newest["pattern"].to_numpy(dtype=int)
        return found

    def on_shelf(self, cut: date) -> NDArray[np.bool_]:
        """(items,) what may be recommended on `cut`: listed then; where nothing was ever listed, what had an event."""
        day = day_number(cut)
        mask = np.zeros(len(self.items), dtype=np.bool_)
        if (self.versions["valid_from"] <= day).any():
            mask[self._versions_at(day)["item"].to_numpy(dtype=int)] = True
        else:
            mask[self.events.loc[self.events["ingest"] <= day, "item"].unique()] = True
        return mask

    def _versions_at(self, day: int) -> pd.DataFrame:
        return held_on(self.versions, day)

    def _newest_at(self, day: int) -> pd.DataFrame:
        """Each item's newest version known on a day: a retired item keeps its last in people's histories."""
        known = self.versions[self.versions["valid_from"] <= day]
        return known.sort_values(["item", "valid_from"]).drop_duplicates("item", keep="last")

    def shelf(self, cut: date) -> Shelf:
        """Text vectors and graph as known on `cut`."""
        rows = self._versions_at(day_number(cut))
        text = np.zeros((len(self.items), self.vectors.shape[1]), dtype=np.float32)
        newest = self._newest_at(day_number(cut))
        told = newest[newest["vector"] >= 0]
        text[told["item"].to_numpy(dtype=int)] = self.vectors[told["vector"].to_numpy(dtype=int)]
        first = np.full(len(self.items), np.nan)
        first[rows["item"].to_numpy(dtype=int)] = rows["first_seen"].to_numpy(dtype=float)
        return Shelf(text, self._graph(cut), first if len(rows) else None)

    def texts(self, cut: date) -> NDArray[np.object_]:
        """(items,) what the language model reads of each item on `cut`; the id where nothing is known."""
        rows = self._newest_at(day_number(cut))
        told = self.items.copy()
        told[rows["item"].to_numpy(dtype=int)] = rows["told"].to_numpy(dtype=object)
        return told

    def _graph(self, cut: date) -> sparse.csr_matrix | None:
        """Nodes that two items share on the day, and not most of those that are known then."""
        day, known = day_number(cut), self.known_items(cut)
        edges = self.edges[(self.edges["since"] <= day) & known[self.edges["item"].to_numpy(dtype=int)]]
        touched = edges["node"].map(edges["node"].value_counts())
        edges = edges[(touched >= 2) & (touched <= max(2, WIDEST_NODE * known.sum()))]
        if not len(edges):
            return None
        where = (edges["item"].to_numpy(dtype=int), edges["node"].to_numpy(dtype=int))
        shape = (len(self.items), len(self.nodes))
        return sparse.csr_matrix((np.ones(len(edges), dtype=np.float32), where), shape=shape)

    def known_items(self, cut: date) -> NDArray[np.bool_]:
        """(items,) what the catalogue or an event has named by the end of a day."""
        day = day_number(cut)
        found = np.zeros(len(self.items), dtype=np.bool_)
        found[self.versions.loc[self.versions["valid_from"] <= day, "item"].to_numpy(dtype=int)] = True
        found[self.events.loc[self.events["ingest"] <= day, "item"].to_numpy(dtype=int)] = True
        return found

    def stock(self, cut: date, daily: DailyCounts) -> Stock:
        """Counts, first days and prices as known on `cut`."""
        rows = self._newest_at(day_number(cut))
        codes = rows["item"].to_numpy(dtype=int)
        first, price = daily.first_days(), np.full(len(self.items), np.nan)
        first[codes] = np.fmin(first[codes], rows["first_seen"].to_numpy(dtype=float))
        price[codes] = rows["price"].to_numpy(dtype=float)
        return Stock(daily, first, price)

    def part(self, histories: Histories, rows: pd.DataFrame, column: str = "targets") -> Part:
        """Rows of ml.examples (user_id, `column`) of one cut as targets behind `histories`; unknown ids are left."""
        named = zip(rows["user_id"], rows[column], strict=True)
        known = sorted((self.user_codes[u], list(t)) for u, t in named if u in self.user_codes)
        wanted = [[self.item_codes[item] for item in mine if item in self.item_codes] for _, mine in known]
        people = np.array([code for code, _ in known], dtype=np.int64)
        starts = np.append(0, np.cumsum([len(mine) for mine in wanted])).astype(np.int64)
        flat = np.array([item for mine in wanted for item in mine], dtype=np.int32)
        return Part(histories.select(people), people, starts, flat)


def held_on(rows: pd.DataFrame, day: int) -> pd.DataFrame:
    """The rows with valid_from <= day < valid_to."""
    return rows[(rows["valid_from"] <= day) & (rows["valid_to"].isna() | (rows["valid_to"] > day))]


def world(
    events: pd.DataFrame,
    items: pd.DataFrame,
    vectors: Mapping[str, NDArray[np.float32]],
    triples: pd.DataFrame,
    weights: Mapping[str, float],
    base: Sequence[str] = (),
    base_nodes: Sequence[str] = (),
    patterns: pd.DataFrame | None = None,
    people: pd.DataFrame | None = None,
    base_kinds: Sequence[str] = (),
) -> World:
    """Codes for frames of `event_columns`, `item_columns`, silver.kg, ml.user_patterns and silver.users.

    Items keep the order of `base` (a model's), new ones come behind it by id; nodes and event types likewise.
    """
    found = sorted((set(events["item_id"]) | set(items["item_id"])) - set(base))
    item_ids = np.array([*base, *found], dtype=object)
    user_ids, user = np.unique(events["user_id"].to_numpy(dtype=object), return_inverse=True)
    code = pd.Series(np.arange(len(item_ids)), index=item_ids)
    kinds = [*base_kinds, *sorted(set(weights) - set(base_kinds))]
    coded = pd.DataFrame(
        {
            "user": user,
            "item": code.reindex(events["item_id"]).to_numpy(),
            "kind": pd.Categorical(events["event_type"], categories=kinds).codes,
            "day": events["day"].to_numpy(dtype=float),
            "weight": events["event_type"].map(weights).fillna(0.0).to_numpy(dtype=np.float32),
            "ingest": events["ingest"].to_numpy(),
        }
    )
    hashes = list(vectors)
    place = pd.Series(np.arange(len(hashes)), index=hashes)
    width = len(vectors[hashes[0]]) if hashes else 1
    matrix = np.stack([vectors[name] for name in hashes]) if hashes else np.zeros((0, width), dtype=np.float32)
    versions = items[["valid_from", "valid_to", "first_seen", "price", "told"]].assign(
        item=code.reindex(items["item_id"]).to_numpy(),
        vector=place.reindex(items["text_hash"]).fillna(-1).to_numpy(dtype=int),
    )
    edges, nodes = _edges(items, triples, code, list(base_nodes))
    vectors_ = matrix.astype(np.float32)
    told = _patterns(patterns, user_ids), _people(people, user_ids, place)
    return World(user_ids, item_ids, kinds, coded, versions, vectors_, edges, nodes, *told)


def _people(rows: pd.DataFrame | None, users: NDArray[np.object_], place: pd.Series) -> pd.DataFrame:
    columns = ["user", "valid_from", "valid_to", "vector"]
    if rows is None or not len(rows):
        return pd.DataFrame({name: [] for name in columns})
    code = pd.Series(np.arange(len(users)), index=users)
    told = rows[["valid_from", "valid_to"]].assign(
        user=code.reindex(rows["user_id"]).to_numpy(), vector=place.reindex(rows["text_hash"]).to_numpy()
    )
    return told.dropna(subset=["user", "vector"])[columns]


def _patterns(rows: pd.DataFrame | None, users: NDArray[np.object_]) -> pd.DataFrame:
    if rows is None or not len(rows):
        return pd.DataFrame({"user": [], "day": [], "pattern": []})
    code = pd.Series(np.arange(len(users)), index=users).reindex(rows["user_id"]).to_numpy()
    told = pd.DataFrame({"user": code, "day": rows["day"].to_numpy(), "pattern": rows["pattern_id"].to_numpy()})
    return told.dropna().astype(int)


def _edges(
    items: pd.DataFrame, triples: pd.DataFrame, code: pd.Series, base: list[str]
) -> tuple[pd.DataFrame, list[str]]:
    """item, node, since: what each item's entity is tied to, both ways, and its attributes; nodes two items share.

    A pair once, from the first day it is known; which nodes count on a day is a matter of that day.
    """
    told = pd.concat([_entity_edges(triples), _attribute_edges(items)], ignore_index=True)
    known = told[told["item_id"].isin(code.index)]
    told = known.groupby(["item_id", "name"])["since"].min().reset_index()
    told = told[told["name"].map(told["name"].value_counts()) >= 2]
    new = sorted(set(told["name"]) - set(base))
    nodes = base + new
    place = pd.Series(np.arange(len(nodes)), index=nodes)
    edges = pd.DataFrame(
        {
            "item": code.reindex(told["item_id"]).to_numpy(),
            "node": place.reindex(told["name"]).to_numpy(),
            "since": told["since"].to_numpy(),
        }
    )
    return edges.dropna().astype(int), nodes


def _entity_edges(triples: pd.DataFrame) -> pd.DataFrame:
    """item_id, name, since of the triples (head, relation, tail, since) around each item's entity."""
    links = triples[triples["relation"] == ITEM_ENTITY].rename(columns={"head": "item_id", "tail": "entity"})
    facts = triples[triples["relation"] != ITEM_ENTITY]
    ahead = facts.rename(columns={"head": "entity", "tail": "other"})
    back = facts.rename(columns={"tail": "entity", "head": "other"}).assign(relation=facts["relation"] + "^-1")
    both = pd.concat([ahead, back], ignore_index=True)
    found = links[["item_id", "entity", "since"]].merge(both, on="entity", suffixes=("_link", ""))
    since = np.maximum(found["since"].to_numpy(dtype=int), found["since_link"].to_numpy(dtype=int))
    return pd.DataFrame({"item_id": found["item_id"], "name": found["relation"] + "|" + found["other"], "since": since})


def _attribute_edges(items: pd.DataFrame) -> pd.DataFrame:
    """item_id, name, since of every attribute of an item (a category, a brand): a node that its items share."""
    rows = [
        (item, f"{ATTRIBUTE} {name}|{value}", since)
        for item, since, told in zip(items["item_id"], items["valid_from"], items["attributes"], strict=True)
        for name, value in (dict(told).items() if told is not None else ())
        if value
    ]
    return pd.DataFrame(rows, columns=["item_id", "name", "since"])
