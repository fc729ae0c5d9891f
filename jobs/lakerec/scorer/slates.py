"""Slates as token sequences: the history once, every candidate behind it (numpy only)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lakerec.errors import ContractError, ModelError
from lakerec.histories import Floats, Histories

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A longer slate is cut, its history read again for each part. Under a mask attention costs the square of a sequence; in
# pieces what is held still grows with it, and beyond so many there is little history to save.
MASKED_TOKENS, PACK_TOKENS = 768, 2048
VECTORS = "vectors"  # what is told by one vector an item
HOLE = -1  # in the place of a token that is a vector
CANDIDATE = 0  # the kind of a vector that is no past event


@dataclass(frozen=True)
class Picked:
    """Rows of a table of vectors (items, d), by their places (n,): many slates share one table."""

    table: Floats
    places: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    @property
    def rows(self) -> Floats:
        """(n, d)."""
        return self.table[self.places]

    def slice(self, start: int, stop: int) -> Picked:
        """Some of them."""
        return Picked(self.table, self.places[start:stop])


Parts = tuple[Picked, NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True)
class Past:
    """Past events, oldest first: their items' text vectors (e, d), codes of their types (e,) and ages in days (e,)."""

    vectors: Picked
    kinds: NDArray[np.int64]
    ages: NDArray[np.float64]

    def last(self, count: int) -> Past:
        """The `count` latest."""
        start = max(0, len(self.kinds) - count)
        return Past(self.vectors.slice(start, len(self.kinds)), self.kinds[start:], self.ages[start:])

    @property
    def parts(self) -> Parts:
        """vectors, kinds, ages; the kinds above that of a candidate."""
        return self.vectors, self.kinds + CANDIDATE + 1, self.ages

    @classmethod
    def of(cls, histories: Histories, person: int, vectors: Floats, count: int) -> Past:
        """The last `count` events of a person of a Histories; vectors (items, d) are the catalogue's."""
        stop = histories.starts[person + 1]
        span = slice(max(histories.starts[person], stop - count), stop)
        ages = histories.at[person] - histories.times[span]
        return cls(
            Picked(vectors, histories.items[span].astype(np.int64)), histories.types[span].astype(np.int64), ages
        )


@dataclass(frozen=True)
class Slate:
    """What is scored for one user: n candidates with features (n, f) and, if known, labels (n,).

    `past` and `vectors` (n, d) are there where a language model reads the history or the candidates as item vectors.
    `instead` (p, f): the last p candidates were put in to learn from, in the stead of some with these features; all of
    them are negatives.
    """

    slate_id: str
    history: str
    texts: list[str]
    features: NDArray[np.float32]
    labels: NDArray[np.float32] | None
    targets: int  # positives the user really had, those that are no candidates included
    past: Past | None = None
    vectors: Picked | None = None
    instead: NDArray[np.float32] | None = None

    @property
    def put_in(self) -> int:
        """How many candidates were put in to learn from."""
        return 0 if self.instead is None else len(self.instead)

    @property
    def served(self) -> NDArray[np.float32]:
        """The features (n, f) of the candidates as they would be served; `labels` hold for them too."""
        if self.instead is None:
            return self.features
        return np.concatenate([self.features[: len(self.features) - self.put_in], self.instead])


@dataclass(frozen=True)
class Given:
    """The tokens of a pack that are item vectors: their places (v,), vectors (v, d), kinds (v,) and ages (v,) in days.

    A kind is CANDIDATE (its age is nan) or the code of a past event's type, counted from CANDIDATE + 1.
    """

    places: NDArray[np.int64]
    vectors: Sequence[Picked]
    kinds: NDArray[np.int64]
    ages: NDArray[np.float64]


@dataclass(frozen=True)
class Pack:
    """One sequence of t tokens: the history (owner 0) and the candidates (owner 1, 2, ...) of `rows`."""

    start: int
    ids: NDArray[np.int32]
    owners: NDArray[np.int32]
    positions: NDArray[np.int32]
    given: Given | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> range:
        """The candidates' places among all candidates of all slates."""
        return range(self.start, self.start + int(self.owners[-1]))


@dataclass(frozen=True)
class Form:
    """How slates are told: at most so many tokens, history and candidates as "text" or as VECTORS.

    As VECTORS each past event or each candidate is one token, its item's vector.
    """

    history_tokens: int
    candidate_tokens: int
    history: str = "text"
    candidate: str = "text"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Form:
        """As a scorer's settings say; those of an older artefact know text alone."""
        return cls(**{each.name: settings[each.name] for each in fields(cls) if each.name in settings})

    @property
    def reads_vectors(self) -> bool:
        """Whether slates need `past` or `vectors`."""
        return VECTORS in (self.history, self.candidate)

    def told(self, histories: Histories, person: int, items: NDArray[np.integer], vectors: Floats) -> dict[str, Any]:
        """A slate's `past` and `vectors`, as far as they are read; vectors (items, d) are the catalogue's."""
        past = Past.of(histories, person, vectors, self.history_tokens) if self.history == VECTORS else None
        return {"past": past, "vectors": Picked(vectors, items.astype(np.int64)) if self.candidate == VECTORS else None}


class Packer:
    """Tokenises slates: the most recent `history_tokens`, the first `candidate_tokens` of each candidate.

    A form with vectors puts those of `past` and `vectors` in the place of words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        history_tokens: int,
        candidate_tokens: int,
        history: str = "text",
        candidate: str = "text",
        longest: int = MASKED_TOKENS,
    ) -> None:
        self.begin, self.separator = special_tokens(tokenizer)
        self.tokenizer = tokenizer
        self.form = Form(history_tokens, candidate_tokens, history, candidate)
        self.longest = max(longest, history_tokens + candidate_tokens + 3)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, form: Form, in_pieces: bool = False) -> Packer:
        """For slates of a form, and a model that attends to a sequence as a whole or in pieces."""
        longest = PACK_TOKENS if in_pieces else MASKED_TOKENS
        return cls(tokenizer, form.history_tokens, form.candidate_tokens, form.history, form.candidate, longest)

    def pack(self, slates: Sequence[Slate]) -> list[Pack]:
        """The sequences of all slates, in order; a slate without candidates has none.

        ContractError where a form with vectors meets a slate without them.
        """
        for slate in slates:
            self._check(slate)
        tokens = tokenise(self.tokenizer, [text for slate in slates for text in self._texts(slate)])
        packs: list[Pack] = []
        row = 0
        for slate in slates:
            history, past = self._history(slate, tokens)
            if self.form.candidate == VECTORS:
                texts = [[HOLE]] * len(slate.texts)
            else:
                texts = [tokens[text][: self.form.candidate_tokens] for text in slate.texts]
            packs += self._split(history, texts, row, past, slate.vectors)
            row += len(texts)
        return packs

    def _check(self, slate: Slate) -> None:
        wanted = {"history": slate.past, "candidate": slate.vectors}
        missing = [name for name, told in wanted.items() if getattr(self.form, name) == VECTORS and told is None]
        if missing:
            raise ContractError(
                f"slate {slate.slate_id}: the model reads item vectors ({', '.join(missing)}), the slate has none; "
                f"set scorer.{missing[0]}: vectors (a teacher's slates are made as its student reads them)"
            )

    def _texts(self, slate: Slate) -> list[str]:
        """What is to be tokenised."""
        history = [] if self.form.history == VECTORS else [slate.history]
        return history if self.form.candidate == VECTORS else [*history, *slate.texts]

    def _history(self, slate: Slate, tokens: Mapping[str, list[int]]) -> tuple[list[int], Past | None]:
        """The tokens of a history, and the events that fill its holes."""
        if self.form.history != VECTORS:
            return tokens[slate.history][-self.form.history_tokens :], None
        past = None if slate.past is None else slate.past.last(self.form.history_tokens)
        return [HOLE] * (0 if past is None else len(past.kinds)), past

    def _split(
        self, history: list[int], texts: list[list[int]], row: int, past: Past | None, vectors: Picked | None
    ) -> Iterator[Pack]:
        room = self.longest - len(self.begin) - len(history) - 1
        for first, last in _chunks([len(text) + 1 for text in texts], room):
            pack = self._join(history, texts[first:last], row + first)
            given = [past.parts] if past else []
            if self.form.candidate == VECTORS and vectors is not None:
                count = last - first
                given.append((vectors.slice(first, last), np.full(count, CANDIDATE), np.full(count, np.nan)))
            yield self._filled(pack, given) if given else pack

    def _filled(self, pack: Pack, given: Sequence[Parts]) -> Pack:
        """Vectors for the holes of a pack, in their order."""
        places = np.flatnonzero(pack.ids == HOLE)
        vectors, kinds, ages = zip(*given, strict=True)
        ids = np.where(pack.ids == HOLE, np.int32(self.separator), pack.ids)
        return replace(pack, ids=ids, given=Given(places, vectors, np.concatenate(kinds), np.concatenate(ages)))

    def _join(self, history: list[int], texts: list[list[int]], start: int) -> Pack:
        blocks = [[*self.begin, *history, self.separator], *([*text, self.separator] for text in texts)]
        lengths = [len(block) for block in blocks]
        owners = np.repeat(np.arange(len(blocks), dtype=np.int32), lengths)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = np.where(owners == 0, offsets, offsets + lengths[0])
        ids = np.concatenate([np.asarray(block, dtype=np.int32) for block in blocks])
        return Pack(start, ids, owners, positions.astype(np.int32))


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """What a text begins with ([CLS], begin-of-sequence or nothing), its separator ([SEP] or end-of-sequence)."""
    begins = (tokenizer.cls_token_id, tokenizer.bos_token_id)
    ends = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    begin, end = ([token for token in tokens if token is not None] for tokens in (begins, ends))
    if not end:
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer has neither a separator nor an end-of-sequence token; "
            "name one as eos_token in tokenizer_config.json"
        )
    return begin[:1], end[0]


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, list[int]]:
    """The ids of each text, each text read once; '[SEP]' in a text is text, a lone surrogate becomes '?'."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    unique = list(dict.fromkeys(texts))
    clean = [text.encode("utf-8", "replace").decode() for text in unique]
    encodings = backend.encode_batch_fast(clean, add_special_tokens=False)
    return {text: encoding.ids for text, encoding in zip(unique, encodings, strict=True)}


def _chunks(lengths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive items whose lengths sum to at most `room` (a longer item stands alone)."""
    first, filled = 0, 0
    for place, length in enumerate(lengths):
        if filled and filled + length > room:
            yield first, place
            first, filled = place, 0
        filled += length
    if lengths:
        yield first, len(lengths)


def batches(lengths: Sequence[float], token_budget: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Indices in batches of similar length, longest first; rows times longest stays within the budget.

    `rows`: the sequences that an index stands for, none of them longer than its length; 1 without. What is over the
    budget by itself stands alone.
    """
    sizes = [1] * len(lengths) if rows is None else rows
    found: list[list[int]] = []
    filled = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if found and lengths[found[-1][0]] * (filled + sizes[index]) <= token_budget:
            found[-1].append(index)
            filled += sizes[index]
        else:
            found.append([index])
            filled = sizes[index]
    return found
