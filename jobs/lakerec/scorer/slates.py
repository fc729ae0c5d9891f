"""Slates as token sequences: the history once, every candidate behind it (numpy only)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lakerec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Attention costs the square of a sequence: a longer slate is cut, its history read again for each piece.
PACK_TOKENS = 768


@dataclass(frozen=True)
class Slate:
    """What is scored for one user: n candidates with features (n, f) and, if known, labels (n,)."""

    slate_id: str
    history: str
    texts: list[str]
    features: NDArray[np.float32]
    labels: NDArray[np.float32] | None
    targets: int  # positives the user really had, those that are no candidates included


@dataclass(frozen=True)
class Pack:
    """One sequence of t tokens: the history (owner 0) and the candidates (owner 1, 2, ...) of `rows`."""

    start: int
    ids: NDArray[np.int32]
    owners: NDArray[np.int32]
    positions: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> range:
        """The candidates' places among all candidates of all slates."""
        return range(self.start, self.start + int(self.owners[-1]))


class Packer:
    """Tokenises slates: the most recent `history_tokens`, the first `candidate_tokens` of each candidate."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, history_tokens: int, candidate_tokens: int) -> None:
        self.begin, self.separator = special_tokens(tokenizer)
        self.tokenizer = tokenizer
        self.history_tokens, self.candidate_tokens = history_tokens, candidate_tokens
        self.longest = max(PACK_TOKENS, history_tokens + candidate_tokens + 3)

    def pack(self, slates: Sequence[Slate]) -> list[Pack]:
        """The sequences of all slates, in order; a slate without candidates has none."""
        tokens = tokenise(self.tokenizer, [text for s in slates for text in (s.history, *s.texts)])
        packs: list[Pack] = []
        row = 0
        for slate in slates:
            texts = [tokens[text][: self.candidate_tokens] for text in slate.texts]
            packs += self._split(tokens[slate.history][-self.history_tokens :], texts, row)
            row += len(texts)
        return packs

    def _split(self, history: list[int], texts: list[list[int]], row: int) -> Iterator[Pack]:
        room = self.longest - len(self.begin) - len(history) - 1
        for first, last in _chunks([len(text) + 1 for text in texts], room):
            yield self._join(history, texts[first:last], row + first)

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
