"""What a source says of every item of the catalogue to some people, as far as it has to be written down.

A small catalogue's scores are one array. Of a large one few items matter to a person: each kind of source tells its
best, the mean and the deviation of all, and the score of a named item, without an array of people x items.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lakerec.generators.nearest import Catalogue, Exact, Nearest
from lakerec.histories import Floats

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

GROUPS = 16  # of columns for each of the best that are asked for
PIECE = 2**22  # scores of one source held at a time where they are many: 16 MiB in float32
PROBES = 64  # items that are asked first whether anything scores below the best
SEARCHES = 6  # held by a process: those of one stage
SPARE = 4096  # silent items that a search looks at, at least


@dataclass(frozen=True)
class Allowed:
    """What may be recommended to some people: what is on the shelf (items,), but for closed pairs (c,), ascending."""

    people: int
    shelf: NDArray[np.bool_]
    person: Ints
    item: Ints

    @classmethod
    def of(
        cls, people: int, shelf: NDArray[np.bool_], person: NDArray[np.integer], item: NDArray[np.integer]
    ) -> Allowed:
        """From pairs in any order, perhaps doubled or off the shelf."""
        kept = shelf[item]
        key = np.unique(person[kept].astype(np.int64) * len(shelf) + item[kept])
        return cls(people, shelf, *np.divmod(key, max(len(shelf), 1)))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(people, items)."""
        found = np.repeat(self.shelf[None], self.people, axis=0)
        found[self.person, self.item] = False
        return found

    @cached_property
    def codes(self) -> Ints:
        """The items of the shelf, ascending."""
        return np.flatnonzero(self.shelf)

    @cached_property
    def starts(self) -> Ints:
        """(people + 1,) where each person's closed pairs begin."""
        return np.searchsorted(self.person, np.arange(self.people + 1))

    @cached_property
    def counts(self) -> Ints:
        """(people,) how many items are open to each."""
        return len(self.codes) - np.diff(self.starts)

    @property
    def most_closed(self) -> int:
        """Closed pairs of whoever has most."""
        return int(np.diff(self.starts).max(initial=0))

    def closed(self, person: int) -> Ints:
        """The items of the shelf that are closed to one."""
        return self.item[self.starts[person] : self.starts[person + 1]]

    def columns(self, codes: Ints) -> NDArray[np.bool_]:
        """(people, n): the mask of some items, ascending."""
        found = np.repeat(self.shelf[codes][None], self.people, axis=0)
        place = np.minimum(np.searchsorted(codes, self.item), max(len(codes) - 1, 0))
        there = codes[place] == self.item if len(codes) else np.zeros(len(self.item), dtype=np.bool_)
        found[self.person[there], place[there]] = False
        return found

    def some(self, first: int, last: int) -> Allowed:
        """Of the people first .. last - 1."""
        span = slice(self.starts[first], self.starts[last])
        return Allowed(last - first, self.shelf, self.person[span] - first, self.item[span])


class Survey(NamedTuple):
    """A source's best of each person: person, item, rank from 0 (n,), by person and rank; mean, std of all (users,)."""

    person: Ints
    item: Ints
    rank: Ints
    mean: NDArray[np.floating]
    std: NDArray[np.floating]


class Scores(ABC):
    """What one source says of all items to some people."""

    @abstractmethod
    def whole(self) -> Floats:
        """(users, items)."""

    @abstractmethod
    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """The `depth` best of each that are allowed, finite, and above the least allowed; ties by item."""

    @abstractmethod
    def at(self, person: Ints, item: Ints) -> Floats:
        """(n,) of pairs, by person ascending."""

    def widened(self, items: int) -> Scores:
        """Over a catalogue that has grown: 0 of what came since."""
        found = self.whole()
        return Whole(np.pad(found, ((0, 0), (0, items - found.shape[1]))))


@dataclass(frozen=True)
class Whole(Scores):
    """One array (users, items)."""

    scores: Floats

    def whole(self) -> Floats:
        """The array."""
        return self.scores

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """From the array."""
        with np.errstate(invalid="ignore"):  # scores that are infinite or no number have no mean
            moments = self.scores.mean(axis=1), self.scores.std(axis=1)
        return Survey(*best(self.scores, allowed.mask, depth), *moments)

    def at(self, person: Ints, item: Ints) -> Floats:
        """From the array."""
        return self.scores[person, item]


@dataclass(frozen=True)
class Rows(Scores):
    """Few rows (r, items), each of them what is said to many people; which (users,) says whose."""

    rows: Floats
    which: Ints

    def whole(self) -> Floats:
        """Each person's row."""
        return self.rows[self.which]

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """Each row is ordered once, as far as it is read behind what is closed to somebody."""
        used, which = np.unique(self.which, return_inverse=True)
        rows, more, found = self.rows[used], allowed.most_closed, list[tuple[Ints, Ints]]()
        row, item, _ = best(rows, np.repeat(allowed.shelf[None], len(rows), axis=0), depth + more)
        tops = np.split(item, np.searchsorted(row, np.arange(1, len(rows))))
        lows = [_lowest(row, allowed.shelf, more + 1) for row in rows]
        gone = np.zeros(len(allowed.shelf), dtype=np.bool_)
        for person, row in enumerate(which.tolist()):
            top, low = tops[row], lows[row]
            gone[allowed.closed(person)] = True
            least = rows[row, low[~gone[low]]].min(initial=np.inf)
            mine = top[~gone[top] & (rows[row, top] > least)][:depth]
            gone[allowed.closed(person)] = False
            found.append((mine, np.arange(len(mine))))
        return Survey(*_joined(found), rows.mean(axis=1)[which], rows.std(axis=1)[which])

    def at(self, person: Ints, item: Ints) -> Floats:
        """From the rows."""
        return self.rows[self.which[person], item]


@dataclass(frozen=True)
class Sparse(Scores):
    """(users, items) without doubles: above 0 where there is an entry, 0 elsewhere."""

    matrix: sparse.csr_matrix

    def whole(self) -> Floats:
        """As an array."""
        return dense(self.matrix)

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """From the entries."""
        found, gone = list[tuple[Ints, Ints]](), ~allowed.shelf
        for person in range(self.matrix.shape[0]):
            item, score = self._row(person)
            gone[allowed.closed(person)] = True
            kept = ~gone[item] & (score > 0) & np.isfinite(score)
            gone[allowed.closed(person)] = False
            item, score = item[kept], score[kept]
            if len(item) == allowed.counts[person]:  # nothing is 0: the least has to be looked for
                above = score > score.min(initial=np.inf)
                item, score = item[above], score[above]
            found.append(_first(item, score, depth))
        doubles = self.matrix.data.astype(np.float64)
        return Survey(*_joined(found), *_moments(self._sums(doubles), self._sums(doubles**2), self.matrix.shape[1]))

    def _row(self, person: int) -> tuple[NDArray[np.int32], Floats]:
        span = slice(self.matrix.indptr[person], self.matrix.indptr[person + 1])
        return self.matrix.indices[span], self.matrix.data[span]

    def _sums(self, values: Doubles) -> Doubles:
        """(users,) of values (entries,)."""
        parts = values, self.matrix.indices, self.matrix.indptr
        return np.asarray(sparse.csr_matrix(parts, shape=self.matrix.shape) @ np.ones(self.matrix.shape[1]))

    def at(self, person: Ints, item: Ints) -> Floats:
        """Each person's entries are laid out once."""
        row, found = np.zeros(self.matrix.shape[1], dtype=np.float32), np.empty(len(item), dtype=np.float32)
        for one, span in _each(person):
            items, score = self._row(one)
            row[items] = score
            found[span] = row[item[span]]
            row[items] = 0
        return found

    def widened(self, items: int) -> Sparse:
        """The same entries."""
        parts = self.matrix.data, self.matrix.indices, self.matrix.indptr
        return Sparse(sparse.csr_matrix(parts, shape=(self.matrix.shape[0], items)))


@dataclass(frozen=True)
class Columns(Scores):
    """scores (users, c) of some items, ascending codes (c,), 0 of the rest of `items`."""

    scores: Floats
    codes: Ints
    items: int

    def whole(self) -> Floats:
        """As an array."""
        found = np.zeros((len(self.scores), self.items), dtype=np.float32)
        found[:, self.codes] = self.scores
        return found

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """Of the items that are 0 no more than `depth` can be among the best of anybody."""
        rest = allowed.shelf.copy()
        rest[self.codes] = False
        codes = np.union1d(self.codes, np.flatnonzero(rest)[: depth + allowed.most_closed])
        scores = np.zeros((len(self.scores), len(codes)), dtype=np.float32)
        scores[:, np.searchsorted(codes, self.codes)] = self.scores
        person, place, rank = best(scores, allowed.columns(codes), depth)
        doubles = self.scores.astype(np.float64)
        moments = _moments(doubles.sum(axis=1), np.square(doubles).sum(axis=1), self.items)
        return Survey(person, codes[place], rank, *moments)

    def at(self, person: Ints, item: Ints) -> Floats:
        """0 where it is none of them."""
        place = np.searchsorted(self.codes, item)
        found = np.append(self.codes, -1)[place] == item
        scores = np.zeros(len(item), dtype=np.float32)
        scores[found] = self.scores[person[found], place[found]]
        return scores

    def widened(self, items: int) -> Columns:
        """The same items."""
        return Columns(self.scores, self.codes, items)


class Index:
    """Vectors (items, d) and biases (items,) of a catalogue, made ready once for many people."""

    # Whose searches are held, the latest last: each has a copy of its vectors, and a training has a stage for each cut.
    searching: ClassVar[deque[weakref.ref[Index]]] = deque()

    def __init__(self, vectors: Floats, biases: Floats | None = None) -> None:
        self.vectors, self.biases = vectors, biases
        self._given: tuple[NDArray[np.bool_], Nearest, float] | None = None
        self._exact: tuple[NDArray[np.bool_], int, Nearest] | None = None
        self._widened: Index | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.vectors)

    @cached_property
    def silent(self) -> NDArray[np.bool_]:
        """(items,) of which nobody is told anything but 0."""
        heard = np.ones(len(self), dtype=np.bool_) if self.biases is not None else np.any(self.vectors != 0, axis=1)
        return ~heard

    def on(self, shelf: NDArray[np.bool_], count: int) -> Nearest:
        """What finds the best `count` of the shelf and fewer; what was made for the shelf before is kept."""
        if self._given is not None and count <= self._given[2] and np.array_equal(self._given[0], shelf):
            return self._given[1]
        known = self._exact
        if known is None or known[1] < count or not np.array_equal(known[0], shelf):
            self._exact, count = None, max(SPARE, 1 << count.bit_length())  # the old goes before the new is made
            self._exact = known = shelf, count, Exact(self.catalogue(shelf, count))
            self.searching.append(weakref.ref(self))
            while len(self.searching) > SEARCHES:
                if (other := self.searching.popleft()()) is not None and other is not self:
                    other._exact = None
        return known[2]

    def use(self, shelf: NDArray[np.bool_], nearest: Callable[[Catalogue], Nearest]) -> None:
        """Search this shelf by what is made of its catalogue."""
        most = SPARE if (shelf & self.silent).sum() > SPARE else np.inf  # then no item of the shelf is left out
        self._given = shelf, nearest(self.catalogue(shelf)), most

    def catalogue(self, shelf: NDArray[np.bool_], spare: int = SPARE) -> Catalogue:
        """The items of a shelf; of silent ones, which tie for everybody, no more than can be among the best."""
        biases = np.zeros(len(self), dtype=np.float32) if self.biases is None else self.biases
        heard = shelf.copy()
        heard[np.flatnonzero(shelf & self.silent)[spare:]] = False
        return Catalogue.of(self.vectors, biases, heard)

    @cached_property
    def moments(self) -> tuple[Doubles, Doubles]:
        """Mean (d + 1,) and covariance (d + 1, d + 1) of the items' vectors, their bias last."""
        size = self.vectors.shape[1] + 1
        mean, squares = np.zeros(size), np.zeros((size, size))
        first = self._rows(slice(0, 1)).ravel() if len(self) else np.zeros(size, dtype=np.float32)
        for at in range(0, len(self), PIECE // size):
            rows = self._rows(slice(at, at + PIECE // size)) - first  # near the mean, so that little cancels
            mean += rows.sum(axis=0, dtype=np.float64)
            squares += rows.T @ rows
        mean /= max(len(self), 1)
        return mean + first.astype(np.float64), squares / max(len(self), 1) - np.outer(mean, mean)

    def _rows(self, span: slice) -> Floats:
        part = self.vectors[span]
        return np.column_stack([part, np.zeros(len(part), np.float32) if self.biases is None else self.biases[span]])

    def products(self, people: Floats) -> Floats:
        """(users, items)."""
        found = np.asarray(people @ self.vectors.T, dtype=np.float32)
        return found if self.biases is None else found + self.biases

    def normaliser(self, people: Floats) -> Doubles:
        """(users,) the logarithm of the sum of each one's exp(products)."""
        found = np.full(len(people), -np.inf)
        step = max(1, PIECE // max(1, len(people)))
        for at in range(0, len(self), step):
            part = Index(self.vectors[at : at + step], None if self.biases is None else self.biases[at : at + step])
            products = part.products(people)
            most = products.max(axis=1, keepdims=True)
            total = np.exp(np.subtract(products, most, out=products), out=products).sum(axis=1, dtype=np.float64)
            found = np.logaddexp(found, most[:, 0] + np.log(total))
        return found

    def widened(self, items: int) -> Index:
        """Zeros for what came since; made once."""
        if self._widened is None or len(self._widened) != items:
            more = items - len(self)
            biases = None if self.biases is None else np.pad(self.biases, (0, more))
            self._widened = Index(np.pad(self.vectors, ((0, more), (0, 0))), biases)
        return self._widened


@dataclass(frozen=True)
class Products(Scores):
    """people (users, d) . vectors + biases of an index, less what each person's are less (users,) by, if anything."""

    people: NDArray[np.floating]
    index: Index
    less: Doubles | None = None

    def whole(self) -> Floats:
        """As an array."""
        found = self.index.products(self.people)  # type: ignore[arg-type]
        return found if self.less is None else (found - self.less[:, None]).astype(np.float32)

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """By a search for the nearest; mean and deviation follow from those of the vectors."""
        told = self.people.any(axis=1) | (self.index.biases is not None)
        person, item, rank = self._best(np.flatnonzero(told), allowed, depth)
        mean, covariance = self.index.moments
        query = np.column_stack([self.people, np.ones(len(self.people))]).astype(np.float64)
        variance = np.einsum("ud,de,ue->u", query, covariance, query, optimize=True)
        less = 0.0 if self.less is None else self.less
        return Survey(person, item, rank, query @ mean - less, np.sqrt(np.maximum(variance, 0.0)))

    def _best(self, people: Ints, allowed: Allowed, depth: int) -> tuple[Ints, Ints, Ints]:
        """person, item, rank of those people who are told anything."""
        mine = np.isin(allowed.person, people)
        closed = np.searchsorted(people, allowed.person[mine]), allowed.item[mine]
        nearest = self.index.on(allowed.shelf, depth + allowed.most_closed)
        item, score = nearest.search(self.people[people].astype(np.float32), depth, closed)
        least = np.array([self._least(allowed, *each) for each in zip(people, item, score, strict=True)])
        row, rank = np.nonzero((item >= 0) & (score > least.reshape(-1, 1)))
        return people[row], item[row, rank], rank

    def _least(self, allowed: Allowed, person: int, item: Ints, score: Floats) -> float:
        """The least score of what is allowed to one, or any that is below all of the best (k,)."""
        last = float(score[item >= 0].min(initial=np.inf))
        if (item >= 0).sum() == allowed.counts[person]:
            return last
        codes, closed = allowed.codes, allowed.closed(person)
        some = codes[:: max(1, len(codes) // PROBES)]
        least = float(self._of(person, some[~np.isin(some, closed)]).min(initial=np.inf))
        if least < last:
            return least
        every = self._of(person, slice(None))
        every[closed] = np.inf
        return min(last, float(every[codes].min(initial=np.inf)))

    def _of(self, person: int, items: Ints | slice) -> Floats:
        """(n,) what one is told of some items, nothing less."""
        found = np.asarray(self.index.vectors[items] @ self.people[person], dtype=np.float32)
        return found if self.index.biases is None else found + self.index.biases[items]

    def at(self, person: Ints, item: Ints) -> Floats:
        """One product a person."""
        found = np.empty(len(item), dtype=np.float32)
        for one, span in _each(person):
            found[span] = self._of(one, item[span]) - (0.0 if self.less is None else self.less[one])
        return found

    def widened(self, items: int) -> Products:
        """Over the wider index."""
        return Products(self.people, self.index.widened(items), self.less)


@dataclass(frozen=True)
class Links(Scores):
    """people (users, nodes) . members (items, nodes), both sparse: many items a person, made for some at a time."""

    people: sparse.csr_matrix
    members: sparse.csr_matrix

    def whole(self) -> Floats:
        """As an array."""
        return dense(self.people @ self.members.T)

    def survey(self, allowed: Allowed, depth: int) -> Survey:
        """Piece by piece."""
        step, users = max(1, PIECE // max(1, self.members.shape[0])), self.people.shape[0]
        parts = list[Survey]()
        for first in range(0, users, step):
            last = min(first + step, users)
            part = Whole(Links(self.people[first:last], self.members).whole()).survey(allowed.some(first, last), depth)
            parts.append(part._replace(person=part.person + first))
        return Survey(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else _silent()

    def at(self, person: Ints, item: Ints) -> Floats:
        """One person's nodes are laid out at a time."""
        found = np.empty(len(item), dtype=np.float32)
        for one, span in _each(person):
            nodes = np.asarray(self.people[one].todense()).ravel()
            found[span] = self.members[item[span]] @ nodes
        return found


def best(scores: Floats, allowed: NDArray[np.bool_], depth: int) -> tuple[Ints, Ints, Ints]:
    """person, item, rank of the `depth` best of each row that are allowed and above its least; ties by item.

    The depth-th largest maximum of groups of columns is at most the depth-th largest score: what lies below it is not
    looked at again.
    """
    known = allowed & np.isfinite(scores)
    least = np.where(known, scores, np.inf).min(axis=1, initial=np.inf, keepdims=True)
    open_ = np.where(known, scores, -np.inf)
    width = scores.shape[1] // (GROUPS * depth) if depth else 0
    above = open_ > least
    if width > 1:
        groups = scores.shape[1] // width
        tops = open_[:, : width * groups].reshape(-1, width, groups).max(axis=1)
        above &= open_ >= np.partition(tops, groups - depth, axis=1)[:, groups - depth, None]
    person, item = np.divmod(np.flatnonzero(above), max(scores.shape[1], 1))
    order = np.lexsort((item, -open_[person, item], person))
    person, item = person[order], item[order]
    rank = np.arange(len(person)) - np.searchsorted(person, np.arange(len(scores)))[person]
    kept = rank < depth
    return person[kept], item[kept], rank[kept]


def dense(matrix: sparse.spmatrix | NDArray[np.floating]) -> Floats:
    """As a float32 array."""
    array = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
    return np.asarray(array, dtype=np.float32)


def _first(item: NDArray[np.integer], score: Floats, count: int) -> tuple[Ints, Ints]:
    """item, rank of the `count` best of one person; ties by item."""
    if len(item) > count > 0:
        kept = score >= np.partition(score, len(score) - count)[len(score) - count]
        item, score = item[kept], score[kept]
    order = np.lexsort((item, -score))[:count]
    return item[order].astype(np.int64), np.arange(len(order))


def _lowest(row: Floats, shelf: NDArray[np.bool_], count: int) -> Ints:
    """The `count` least finite items of the shelf, in any order."""
    known = np.where(shelf & np.isfinite(row), row, np.inf)
    least = np.flatnonzero(known == known.min(initial=np.inf))
    if len(least) < count < len(row):
        least = np.argpartition(known, count - 1)[:count]
    elif len(least) < count:
        least = np.arange(len(row))
    return least[:count][np.isfinite(known[least[:count]])]


def _joined(found: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints, Ints]:
    """person, item, rank of each person's item and rank."""
    nothing = np.zeros(0, dtype=np.int64)
    person = np.repeat(np.arange(len(found)), np.array([len(item) for item, _ in found], dtype=np.int64))
    item, rank = (np.concatenate([nothing, *column]) for column in (zip(*found, strict=True) if found else ((), ())))
    return person, item, rank


def _moments(total: Doubles, squares: Doubles, items: int) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation (users,) of rows by their sums and sums of squares."""
    mean = total / max(items, 1)
    return mean, np.sqrt(np.maximum(squares / max(items, 1) - mean**2, 0.0))


def _each(person: Ints) -> Iterator[tuple[int, slice]]:
    """Each person of an ascending array, with the places."""
    starts = np.flatnonzero(np.diff(person, prepend=-1))
    for first, last in zip(starts, np.append(starts[1:], len(person)), strict=True):
        yield int(person[first]), slice(first, last)


def _silent() -> Survey:
    nothing = np.zeros(0, dtype=np.int64)
    return Survey(nothing, nothing, nothing, np.zeros(0), np.zeros(0))
