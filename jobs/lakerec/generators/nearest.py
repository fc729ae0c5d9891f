"""Maximum inner product search: each user's top n items by user . item + bias, exact or by an inverted file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lakerec.errors import ConfigError, ContractError, ModelError
from lakerec.histories import Floats

Ints = NDArray[np.int64]
Pairs = tuple[Ints, Ints]  # users (p,), items (p,)
Found = tuple[Ints, Floats]

BLOCK = (128, 2**17)  # users x items whose products are held at a time: 64 MiB in float32
GROUPS = 16  # groups of items for each of the n that are asked for
RESCORED = 4096  # pairs (user, item) scored at a time: their products fit L2
QUERIES = 4096  # users of one search in the inverted file
LEAST = np.finfo(np.float32).min
TRAINED = 64  # items for each centroid that k-means reads
ROUNDS = 10  # of k-means
FAISS = "faiss-cpu==1.15.1"


class Nearest(Protocol):
    """What finds the top n."""

    def search(self, users: Floats, n: int, known: Pairs | None = None) -> Found:
        """items (u, n) int64, best first, ties by item, -1 behind the last; scores (u, n) float32, -inf there.

        users (u, d); known: pairs (user, item) that are left out.
        """
        ...


@dataclass(frozen=True)
class Catalogue:
    """The items that may be found: rows (m, d + 1), the bias last, and codes (m,), ascending, of 0 .. items - 1."""

    rows: Floats
    codes: Ints
    items: int

    @classmethod
    def of(cls, vectors: Floats, biases: Floats, allowed: NDArray[np.bool_] | None = None) -> Catalogue:
        """vectors (items, d), biases (items,), allowed (items,), all of them without."""
        items = len(vectors)
        mask = np.ones(items, dtype=np.bool_) if allowed is None else np.asarray(allowed, dtype=np.bool_)
        if np.ndim(vectors) != 2 or np.shape(biases) != (items,) or mask.shape != (items,):
            shapes = f"{np.shape(vectors)}, biases {np.shape(biases)}, allowed {mask.shape}"
            raise ContractError(f"item vectors {shapes}: (items, d), (items,) and (items,) are expected")
        codes = np.flatnonzero(mask)
        return cls(_finite("item vectors", np.column_stack([vectors[codes], biases[codes]])), codes, items)

    def __len__(self) -> int:
        """Number of items that may be found."""
        return len(self.codes)

    def queries(self, users: Floats, n: int) -> Floats:
        """users (u, d) as (u, d + 1), a one last; ContractError where they do not fit the items, or n is below 1."""
        size = self.rows.shape[1] - 1
        if np.ndim(users) != 2 or np.shape(users)[1] != size or n < 1:
            raise ContractError(f"user vectors {np.shape(users)}, n = {n}: (users, {size}) and n >= 1 are expected")
        return _finite("user vectors", np.column_stack([users, np.ones(len(users), dtype=np.float32)]))

    def places(self, known: Pairs | None, users: int) -> Pairs:
        """Pairs (user, item) as (user, place), without doubles and what may not be found, ascending."""
        if known is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        row, item = (np.asarray(side, dtype=np.int64) for side in known)
        for side, limit in ((row, users), (item, self.items)):
            if len(row) != len(item) or side.min(initial=0) < 0 or side.max(initial=-1) >= limit:
                raise ContractError(f"known pairs beyond {users} users x {self.items} items, or of unequal length")
        place = np.searchsorted(self.codes, item)
        found = np.isin(item, self.codes)
        key = np.unique(row[found] * max(1, len(self)) + place[found])
        return key // max(1, len(self)), key % max(1, len(self))

    def scores(self, queries: Floats, row: Ints, place: Ints) -> Floats:
        """(c,) queries[row] . rows[place], summed in float64 in one order, rounded to float32."""
        found = np.empty(len(row), dtype=np.float32)
        for at in range(0, len(row), RESCORED):
            span = slice(at, at + RESCORED)
            found[span] = _summed(queries[row[span]].astype(np.float64) * self.rows[place[span]])
        return found

    def told(self, places: Ints) -> Ints:
        """The codes of places, -1 where a place is -1."""
        return np.append(self.codes, -1)[places]


def _finite(what: str, values: Floats) -> Floats:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ModelError(f"{what} that are infinite or no number: the retriever's training diverged; train again")
    return array


def _summed(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """(c, d) -> (c,): halves added elementwise, so that a row's sum does not depend on its neighbours."""
    while (width := products.shape[1]) > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:]
        products = products[:, :half]
    return products[:, 0]


class Exact:
    """The exact top n on the processor, whatever the blocks.

    A block of float32 products selects: the n-th largest maximum of groups of items is at most the n-th largest
    product, and what lies further below it than float32 can err is not among the top n. The rest gets its score.
    """

    def __init__(self, catalogue: Catalogue, block: tuple[int, int] = BLOCK) -> None:
        self.catalogue, self.block = catalogue, block
        parts = (catalogue.rows[at : at + RESCORED] for at in range(0, len(catalogue), RESCORED))
        self.longest = max(
            (float(np.linalg.norm(part.astype(np.float64), axis=1).max()) for part in parts), default=0.0
        )

    def search(self, users: Floats, n: int, known: Pairs | None = None) -> Found:
        """As Nearest; as many items as are allowed and not known, up to n."""
        queries = self.catalogue.queries(users, n)
        row, place = self.catalogue.places(known, len(queries))
        places, scores = _nothing(len(queries), n)
        slack = self._slack(queries)
        step, width = self.block
        buffer = np.empty(min(step, len(queries)) * min(width, len(self.catalogue)), dtype=np.float32)
        for at in range(0, len(queries), step):
            part = slice(at, at + step)
            mine = slice(*np.searchsorted(row, (at, at + step)))
            gone = row[mine] - at, place[mine]
            places[part], scores[part] = self._top(queries[part], n, gone, slack[part], buffer)
        return self.catalogue.told(places), scores

    def _slack(self, queries: Floats) -> NDArray[np.float64]:
        """(u,) twice what a float32 product may be off, in any order of summation (Higham 2002, section 3.1)."""
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        size = norms * self.longest
        if size.max(initial=0) >= np.finfo(np.float32).max / 4:
            raise ModelError(f"scores of up to {size.max():.1g} overflow float32: train the retriever again")
        terms = queries.shape[1] + 8
        underflow = np.finfo(np.float32).tiny * (1 + norms + self.longest)
        return 2 * terms * (2.0**-24 * size + underflow)

    def _top(self, queries: Floats, n: int, gone: Pairs, slack: NDArray[np.float64], buffer: Floats) -> Found:
        """Places and scores (u, n) of a block of users."""
        best = _nothing(len(queries), n)
        for at in range(0, len(self.catalogue), self.block[1]):
            products = self._products(queries, at, gone, buffer)
            floor = np.maximum(_nth(products, n), best[1][:, -1]) - slack
            floor = np.maximum(floor, LEAST).astype(np.float32)
            flat = np.flatnonzero(products >= floor[:, None])
            row, place = np.divmod(flat, products.shape[1])
            best = _merged(best, row, place + at, self.catalogue.scores(queries, row, place + at))
        return best

    def _products(self, queries: Floats, at: int, gone: Pairs, buffer: Floats) -> Floats:
        """(u, width) of the items from `at` on, -inf where an item is left out."""
        rows = self.catalogue.rows[at : at + self.block[1]]
        found = buffer[: len(queries) * len(rows)].reshape(len(queries), len(rows))
        np.matmul(queries, rows.T, out=found)
        inside = (gone[1] >= at) & (gone[1] < at + len(rows))
        found[gone[0][inside], gone[1][inside] - at] = -np.inf
        return found


def _nothing(users: int, n: int) -> Found:
    return np.full((users, n), -1, dtype=np.int64), np.full((users, n), -np.inf, dtype=np.float32)


def _nth(products: Floats, n: int) -> NDArray[np.float64]:
    """(u,) at most the n-th largest of each row: the n-th largest maximum of groups of its columns."""
    users, items = products.shape
    if items < n:
        return np.full(users, -np.inf)
    width = max(1, items // (GROUPS * n))
    groups = items // width
    maxima = products[:, : width * groups].reshape(users, width, groups).max(axis=1)
    return np.partition(maxima, groups - n, axis=1)[:, groups - n].astype(np.float64)


def _merged(best: Found, row: Ints, place: Ints, score: Floats) -> Found:
    """The top n of each user among the places found before (users, n) and new ones (c,)."""
    old = np.nonzero(best[0] >= 0)
    row, place = np.append(old[0], row), np.append(best[0][old], place)
    score = np.append(best[1][old], score)
    order = np.lexsort((place, -score, row))
    row = row[order]
    rank = np.arange(len(row)) - np.searchsorted(row, np.arange(len(best[0])))[row]
    kept = rank < best[0].shape[1]
    places, scores = _nothing(*best[0].shape)
    places[row[kept], rank[kept]] = place[order][kept]
    scores[row[kept], rank[kept]] = score[order][kept]
    return places, scores


class Approximate:
    """Top n by FAISS' inverted file (inner product, the bias one dimension more), scored as Exact scores.

    `index` reads `probes` of its lists for a user. A user for whom they hold too few items gets the exact top n.
    """

    def __init__(self, catalogue: Catalogue, index: Any) -> None:
        if index.ntotal != len(catalogue):
            raise ContractError(f"an inverted file of {index.ntotal} items for {len(catalogue)}: build it again")
        self.catalogue, self.index, self.exact = catalogue, index, Exact(catalogue)

    @classmethod
    def built(
        cls,
        catalogue: Catalogue,
        sample: Floats,
        n: int = 100,
        target: float = 0.98,
    ) -> tuple[Approximate, str]:
        """With as many probes, a power of two, as find `target` of the exact top n of the `sample` (s, d).

        And a line that tells what they find.
        """
        if not len(sample) or not len(catalogue):
            raise ContractError("an inverted file needs items, and a sample of user vectors to choose its probes by")
        found = cls(catalogue, _inverted(catalogue))
        reached = found._probe(sample, n, target)
        about = f"inverted file of {len(catalogue)} items, {found.probes} of {found.lists} lists"
        return found, f"{about}, recall@{n} {reached:.4f} on {len(sample)} users (target {target})"

    @property
    def probes(self) -> int:
        """Lists that are read for a user."""
        return int(self.index.nprobe)

    @property
    def lists(self) -> int:
        """All lists."""
        return int(self.index.nlist)

    def save(self, file: Path) -> None:
        """Write beside the file and rename."""
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        _faiss().write_index(self.index, str(draft))
        draft.replace(file)

    @classmethod
    def load(cls, file: Path, catalogue: Catalogue) -> Approximate:
        """What `save` wrote, of the same catalogue; its pages are shared by all who read it."""
        faiss = _faiss()
        try:
            return cls(catalogue, faiss.read_index(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY))
        except RuntimeError as error:
            raise ModelError(f"{file}: no inverted file ({str(error).splitlines()[-1]}); score again") from error

    def _probe(self, sample: Floats, n: int, target: float) -> float:
        """Set the fewest probes among the powers of two that reach the target; their recall."""
        truth, queries = self.exact.search(sample, n)[0], self.catalogue.queries(sample, n)
        self.index.nprobe = 1
        while True:
            found = recall(self.catalogue.told(self._fetched(queries, n)), truth)
            if found >= target or self.probes == self.lists:
                return found
            self.index.nprobe = min(2 * self.probes, self.lists)

    def _fetched(self, queries: Floats, count: int) -> Ints:
        """Places (u, count), -1 behind the last."""
        places: Ints = self.index.search(queries, min(count, len(self.catalogue)))[1]
        return places

    def search(self, users: Floats, n: int, known: Pairs | None = None) -> Found:
        """As Nearest; each user's number of known items is fetched on top of n."""
        queries = self.catalogue.queries(users, n)
        gone = self.catalogue.places(known, len(queries))
        more = np.bincount(gone[0], minlength=len(queries))
        places, scores = _nothing(len(queries), n)
        for rows, count in _batches(more):
            row, place = self._left(rows, self._fetched(queries[rows], n + count), gone)
            score = self.catalogue.scores(queries[rows], row, place)
            places[rows], scores[rows] = _merged(_nothing(len(rows), n), row, place, score)
        items = self.catalogue.told(places)
        short = np.flatnonzero((places >= 0).sum(axis=1) < np.minimum(n, len(self.catalogue) - more))
        mine = np.isin(gone[0], short)
        again = np.searchsorted(short, gone[0][mine]), self.catalogue.codes[gone[1][mine]]
        items[short], scores[short] = self.exact.search(queries[short, :-1], n, again)
        return items, scores

    def _left(self, rows: Ints, places: Ints, gone: Pairs) -> Pairs:
        """What was fetched for the users `rows`, as (place in rows, place of the item), without what is gone."""
        row, column = np.nonzero(places >= 0)
        place = places[row, column]
        total = len(self.catalogue)
        mine = np.isin(gone[0], rows)
        kept = ~np.isin(rows[row] * total + place, gone[0][mine] * total + gone[1][mine])
        return row[kept], place[kept]


def _batches(more: Ints) -> Iterator[tuple[Ints, int]]:
    """Users (places) with how many items to fetch on top: the next power of two of what each has known."""
    size = np.where(more > 0, 2 ** np.ceil(np.log2(np.maximum(more, 1))), 0).astype(np.int64)
    for count in np.unique(size):
        rows = np.flatnonzero(size == count)
        for at in range(0, len(rows), QUERIES):
            yield rows[at : at + QUERIES], int(count)


def _inverted(catalogue: Catalogue) -> Any:
    faiss, size = _faiss(), catalogue.rows.shape[1]
    lists = min(int(4 * len(catalogue) ** 0.5), -(-len(catalogue) // 39))  # 39: FAISS' least for k-means
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = ROUNDS, TRAINED
    index.train(catalogue.rows)
    index.add(catalogue.rows)
    return index


def _faiss() -> Any:
    """FAISS; ConfigError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"a catalogue of more than `candidates.exact_items` items is searched by FAISS, which cannot be "
            f"imported ({error}): install {FAISS} (pip install {FAISS}) or raise `candidates.exact_items`"
        ) from error
    return faiss


def recall(found: Ints, truth: Ints) -> float:
    """The mean part of each user's true items (u, n) that is found (u, n); -1 is no item; nan where nobody has any."""
    hits = [len(np.intersect1d(mine[mine >= 0], true)) for mine, true in zip(found, truth, strict=True)]
    totals = (truth >= 0).sum(axis=1)
    return float(np.mean(np.array(hits)[totals > 0] / totals[totals > 0])) if totals.any() else float("nan")
