"""The public data sets as histories, and what is known of their items and people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.record import ROOT, data_folder
from numpy.typing import NDArray
from scipy import sparse

from lakerec.errors import SourceError
from lakerec.generators.base import Shelf
from lakerec.histories import Floats, Histories

CACHE = ROOT / ".lakerec" / "bench"
CORE = 5  # events that every user and item has at least
SECONDS = 86400.0
FOLDERS = {
    "ml_latest_small": "ml-latest-small",
    "ml_1m": "movielens-1m",
    "ml_100k": "ml-100k",
    "online_retail": "online-retail",
}


@dataclass(frozen=True)
class Records:
    """A data set as read.

    texts and item_ids (items,); price (items,), nan unknown; attributes and profiles (users,); graph (items, nodes),
    which (relation, entity) nodes an item touches.
    """

    name: str
    histories: Histories
    item_ids: Sequence[str]
    texts: Sequence[str]
    price: NDArray[np.float64]
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    profiles: Sequence[str] | None = None
    graph: sparse.csr_matrix | None = None


@dataclass(frozen=True)
class Dataset:
    """Records with their texts as vectors: those of the people are in records.histories.profiles."""

    records: Records
    shelf: Shelf


def load(name: str) -> Dataset:
    """A data set with text vectors by MiniLM, which are kept between runs."""
    records = read(name)
    if records.profiles is not None:
        told = replace(records.histories, profiles=encoded(records.profiles))
        records = replace(records, histories=told)
    return Dataset(records, Shelf(encoded(records.texts), records.graph))


def read(name: str) -> Records:
    """A data set without vectors; SourceError where its counts are not those of the published set."""
    records = READERS[name](data_folder(FOLDERS[name]))
    histories = records.histories
    found = (len(histories.items), len(histories), histories.n_items)
    if found != COUNTS[name]:
        told = ["{:,} events / {:,} users / {:,} items".format(*counts) for counts in (COUNTS[name], found)]
        raise SourceError(f"{name}: {told[0]} expected, {told[1]} found: these are not the published files")
    return records


def encoded(texts: Sequence[str]) -> Floats:
    """(texts, d) of length 1, zeros for an empty text; kept in CACHE under a hash of the texts."""
    digest = hashlib.sha256("\n".join(["minilm-l6", *texts]).encode()).hexdigest()[:16]
    place = CACHE / f"text-{digest}.npy"
    if place.exists():
        return np.asarray(np.load(place), dtype=np.float32)
    from lakerec.scorer.language_model import TextEncoder

    vectors = TextEncoder("minilm-l6").encode(texts)
    vectors[[not text.strip() for text in texts]] = 0.0
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(".draft.npy")
    np.save(draft, vectors)
    draft.rename(place)
    return vectors


def core(users: NDArray[Any], items: NDArray[Any], least: int = CORE) -> NDArray[np.bool_]:
    """The events (n,) that are left when everybody and everything with fewer than `least` has gone, again and again."""
    user, item = (np.unique(column, return_inverse=True)[1] for column in (users, items))
    kept = np.ones(len(user), dtype=bool)
    while True:
        enough = [np.bincount(column[kept], minlength=len(user) + 1)[column] >= least for column in (user, item)]
        left = kept & enough[0] & enough[1]
        if left.sum() == kept.sum():
            return left
        kept = left


def histories_of(
    users: pd.Series, items: pd.Series, days: NDArray[np.floating], **columns: NDArray[Any]
) -> tuple[Histories, list[str], list[str]]:
    """Histories and the ids behind its places; events of equal time keep the order given."""
    user_ids, user = np.unique(users.astype(str), return_inverse=True)
    item_ids, item = np.unique(items.astype(str), return_inverse=True)
    made = Histories.of_events(user, item, days, len(user_ids), len(item_ids), **columns)
    return made, user_ids.tolist(), item_ids.tolist()


def _films(name: str, histories: Histories, ids: list[str], texts: pd.Series, **more: Any) -> Records:
    """Records without prices; `texts` by item id."""
    price = np.full(len(ids), np.nan)
    return Records(name, histories, ids, texts.loc[ids].tolist(), price, **more)


def _ml_latest_small(folder: Path) -> Records:
    """5-core of the ratings; one line of the file is corrupt (its timestamp is followed by an address)."""
    rows = pd.read_csv(folder / "ratings.csv.gz", dtype=str)
    rows["time"] = pd.to_numeric(rows["timestamp"], errors="coerce")
    good = rows[rows["time"].notna()]
    print(f"ml_latest_small: {len(rows) - len(good)} unreadable line left out")
    good = good[core(good["userId"].to_numpy(), good["movieId"].to_numpy())]
    days = good["time"].to_numpy(dtype=np.float64) / SECONDS
    histories, _, ids = histories_of(good["userId"], good["movieId"], days)
    films = pd.read_csv(folder / "movies.csv.gz", dtype=str).set_index("movieId")
    texts = films["title"] + " " + films["genres"].str.replace("|", " ", regex=False)
    return _films("ml_latest_small", histories, ids, texts)


def _ml_1m(folder: Path) -> Records:
    """The published order within each user; it is an order by time, so that only ties need it."""
    rows = pd.read_csv(folder / "events.csv.gz").sort_values(["user_id", "position"], kind="stable")
    days = rows["timestamp"].to_numpy(dtype=np.float64) / SECONDS
    histories, _, ids = histories_of(rows["user_id"], rows["item_id"], days)
    films = pd.read_csv(folder / "items.csv.gz", dtype=str).set_index("item_id")
    return _films("ml_1m", histories, ids, films["title"])


def _ml_100k(folder: Path) -> Records:
    """With the knowledge graph of its films and what its people say of themselves."""
    rows, films, people = (_atomic(folder, kind) for kind in ("inter", "item", "user"))
    days = rows["timestamp"].to_numpy(dtype=np.float64) / SECONDS
    histories, users, ids = histories_of(rows["user_id"], rows["item_id"], days)
    films, people = films.set_index("item_id"), people.set_index("user_id").loc[users]
    texts = films["movie_title"] + " (" + films["release_year"] + ") " + films["class"]
    words = people["gender"].map({"M": "man", "F": "woman"})
    told = "a " + words + " of " + people["age"] + " years, occupation: " + people["occupation"]
    attributes = {"gender": words.tolist(), "occupation": people["occupation"].tolist()}
    graph = graph_nodes(_atomic(folder, "kg"), _atomic(folder, "link"), ids)
    return _films("ml_100k", histories, ids, texts, attributes=attributes, profiles=told.tolist(), graph=graph)


def _atomic(folder: Path, kind: str) -> pd.DataFrame:
    """One of RecBole's files, its columns without their types."""
    rows = pd.read_csv(folder / f"ml-100k.{kind}.gz", sep="\t", dtype=str)
    return rows.rename(columns=lambda name: name.split(":")[0])


def graph_nodes(triples: pd.DataFrame, links: pd.DataFrame, ids: Sequence[str]) -> sparse.csr_matrix:
    """Items x (relation, other entity) nodes that at least two items share; an item may be head or tail."""
    at = {entity: place for place, entity in _places(links, ids)}
    pairs = [(h, f"{r} > {t}") for h, r, t in triples.itertuples(index=False) if h in at]
    pairs += [(t, f"{r} < {h}") for h, r, t in triples.itertuples(index=False) if t in at]
    items = np.array([at[entity] for entity, _ in pairs], dtype=np.int64)
    _, nodes = np.unique([node for _, node in pairs], return_inverse=True)
    members = sparse.csr_matrix(
        (np.ones(len(items), dtype=np.float32), (items, nodes)), shape=(len(ids), max(nodes) + 1)
    )
    members.data[:] = 1.0
    shared = np.flatnonzero(np.asarray((members != 0).sum(axis=0)).ravel() >= 2)
    return members[:, shared].tocsr()


def _places(links: pd.DataFrame, ids: Sequence[str]) -> list[tuple[int, str]]:
    """(place, entity) of the linked items."""
    entity = links.set_index("item_id")["entity_id"]
    return [(place, entity[item]) for place, item in enumerate(ids) if item in entity.index]


def _online_retail(folder: Path) -> Records:
    """Lines with a customer; a negative quantity is a return: it weighs nothing and is no choice.

    Text and price are those of the whole year (the catalogue's, not the customer's).
    """
    files = sorted(folder.glob("*.csv.gz"))
    rows = pd.concat([pd.read_csv(file, dtype=str) for file in files], ignore_index=True)
    rows["item"] = rows["StockCode"].str.strip().str.upper()
    rows = rows[rows["CustomerID"].notna()].assign(customer=rows["CustomerID"].str.replace(".0", "", regex=False))
    bought = pd.to_numeric(rows["Quantity"]).to_numpy() > 0
    days = (pd.to_datetime(rows["InvoiceDate"]) - pd.Timestamp(0)).dt.total_seconds().to_numpy() / SECONDS
    columns: dict[str, NDArray[Any]] = {"weights": bought.astype(np.float32), "types": (~bought).astype(np.int16)}
    histories, users, ids = histories_of(rows["customer"], rows["item"], days, **columns)
    by_item = rows.assign(price=pd.to_numeric(rows["UnitPrice"])).groupby("item")
    texts, price = by_item["Description"].last().fillna(""), by_item["price"].median().loc[ids]
    country = rows.groupby("customer")["Country"].last().loc[users]
    attributes = {"country": country.tolist()}
    return Records("online_retail", histories, ids, texts.loc[ids].tolist(), price.to_numpy(), attributes)


READERS: dict[str, Callable[[Path], Records]] = {
    "ml_latest_small": _ml_latest_small,
    "ml_1m": _ml_1m,
    "ml_100k": _ml_100k,
    "online_retail": _online_retail,
}
# Events, users, items.
COUNTS = {
    "ml_latest_small": (90_273, 610, 3_650),
    "ml_1m": (999_611, 6_040, 3_416),
    "ml_100k": (100_000, 943, 1_682),
    "online_retail": (406_829, 4_372, 3_684),
}
