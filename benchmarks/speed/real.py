"""People of the public data for the speed of scoring: their histories in words, and articles of their shop beside them.

The cost does not depend on which articles are shown: they are drawn from the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from benchmarks.quality import data
from benchmarks.quality.language_model import VERBS, WATCHED, in_words
from benchmarks.speed import made

from lakerec.scorer.slates import Slate

SETS = ("online_retail", "ml_1m")


def slates(name: str, count: int, candidates: int, history_tokens: int) -> list[Slate]:
    """So many people by seed, each with the end of their history and the beginning of each article's text.

    Both are cut to what the scorer reads of them, so that a cross-encoder reads the same.
    """
    records = data.read(name)
    rng = np.random.default_rng(5)
    chosen = rng.choice(len(records.histories), count, replace=False)
    found = []
    for person in chosen:
        told = in_words(records.histories, int(person), records.texts, VERBS.get(name, WATCHED))
        shown = rng.choice(records.histories.n_items, candidates, replace=False)
        texts = [made.first_tokens(records.texts[item], made.CANDIDATE_TOKENS) for item in shown]
        features = rng.normal(size=(candidates, 1)).astype(np.float32)
        found.append(Slate(str(person), made.last_tokens(told, history_tokens), texts, features, None, 0))
    return found


def ceiling(slates: Sequence[Slate]) -> float:
    """How many times the tokens of slates their pairs have: n (h + c + 3) by h + 2 + n (c + 1), all together."""
    texts = list(dict.fromkeys(text for slate in slates for text in (slate.history, *slate.texts)))
    read = made.tokenizer().backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    size = {text: len(tokens.ids) for text, tokens in zip(texts, read, strict=True)}
    pairs = sum(size[slate.history] + size[text] + 3 for slate in slates for text in slate.texts)
    return pairs / sum(size[slate.history] + 2 + sum(size[text] + 1 for text in slate.texts) for slate in slates)
