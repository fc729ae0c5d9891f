"""Made people for the speed of scoring: histories and candidates of the simulator's words, and a model trained on them.

Everyone has a taste (a category of the simulator's shop), tells it in the history and chooses it among the candidates.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.record import ROOT

from lakerec.config import Scorer
from lakerec.histories import Floats
from lakerec.scorer.artefact import FORMAT, MANIFEST
from lakerec.scorer.base_model import BUNDLED, folder, model_id
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.slates import Past, Picked, Slate
from lakerec.scorer.training import train
from lakerec.simulator import VOCABULARY

STATE = ROOT / ".lakerec" / "bench"
TITLES = 2000
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
LIKED = 0.2  # share of the candidates that are of the person's taste
CANDIDATE_TOKENS = 16  # cut there, as by default; a title has 14 on average
WIDTH = 384  # of an item's text vector
FORMS = {"text": ("text", "text"), "history vectors": ("vectors", "text"), "vectors": ("vectors", "vectors")}
FEATURES = ["score"]  # noise: whatever is learnt is learnt from the texts


@cache
def titles() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Category and title of each article."""
    rng = np.random.default_rng(0)
    kinds = [(category, *kind) for category, found in VOCABULARY.items() for kind in found]
    made = []
    for number in range(TITLES):
        category, noun, materials, use, _ = kinds[number % len(kinds)]
        told = f"{rng.choice(materials.split())} {noun} {number} in {rng.choice(COLOURS)}, {use}"
        made.append((category, told))
    categories, names = zip(*made, strict=True)
    return categories, names


def people(count: int, candidates: int, history_tokens: int, seed: int = 1) -> pd.DataFrame:
    """user_id, history, events, items, texts, features, labels of so many; the same seed makes the same."""
    rng = np.random.default_rng(seed)
    categories, names = map(np.array, titles())
    tastes = np.array(sorted(VOCABULARY))
    return pd.DataFrame([_person(n, rng, categories, names, tastes, candidates, history_tokens) for n in range(count)])


def _person(
    number: int, rng: np.random.Generator, categories: Any, names: Any, tastes: Any, candidates: int, tokens: int
) -> dict[str, Any]:
    own = np.flatnonzero(categories == rng.choice(tastes))
    events = own[rng.integers(len(own), size=tokens // 8 + 1)]
    told = "; ".join(f"2026-03-{1 + n % 28:02d} bought {names[item]}" for n, item in enumerate(events))
    liked = rng.random(candidates) < LIKED
    liked[:2] = True, False
    shown = np.where(liked, own[rng.integers(len(own), size=candidates)], rng.integers(TITLES, size=candidates))
    return {
        "user_id": f"u{number:06d}",
        "history": last_tokens(told, tokens),
        "events": events.tolist(),
        "items": [f"i{item:05d}" for item in shown],
        "texts": names[shown].tolist(),
        "features": rng.normal(size=candidates).astype(np.float32).tolist(),
        "labels": (categories[shown] == categories[own[0]]).astype(np.float32).tolist(),
    }


@cache
def tokenizer() -> Any:
    """The bundled model's, which cuts nothing."""
    found = load_encoder(folder(BUNDLED))[1]
    found.backend_tokenizer.no_truncation()
    found.backend_tokenizer.no_padding()
    return found


def last_tokens(text: str, tokens: int) -> str:
    """The end of a text."""
    offsets = tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).offsets
    return text[offsets[-min(tokens, len(offsets))][0] :] if offsets else ""


def first_tokens(text: str, tokens: int) -> str:
    """The beginning of a text."""
    offsets = tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).offsets
    return text[: offsets[:tokens][-1][1]] if offsets else ""


@cache
def vectors() -> Floats:
    """A unit vector for each article: what it costs to read them does not depend on what they are."""
    found = np.random.default_rng(4).normal(size=(TITLES, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def slates(frame: pd.DataFrame) -> list[Slate]:
    """The people as the scorer takes them, in words and in item vectors."""
    found = []
    names = ("user_id", "history", "events", "items", "texts", "features", "labels")
    for user, history, events, items, texts, features, labels in zip(*(frame[name] for name in names), strict=True):
        truth = np.asarray(labels, dtype=np.float32)
        column = np.asarray(features, dtype=np.float32)[:, None]
        codes, past = np.array([int(item[1:]) for item in items]), np.asarray(events, dtype=np.int64)
        told = Past(Picked(vectors(), past), np.zeros(len(past), dtype=np.int64), np.ones(len(past)))
        count = int(truth.sum())
        found.append(Slate(user, history, list(texts), column, truth, count, told, Picked(vectors(), codes)))
    return found


def settings(history_tokens: int, model: str = BUNDLED, form: str = "text", **training: Any) -> Scorer:
    """A scorer whose language model always stays."""
    history, candidate = FORMS[form]
    return Scorer.model_validate(
        {
            "history": history,
            "candidate": candidate,
            "model": model,
            "language_model": "always",
            "history_tokens": history_tokens,
            "candidate_tokens": CANDIDATE_TOKENS,
            "training": training,
        }
    )


def artefact(place: Path = STATE, model: str = BUNDLED, history_tokens: int = 160, form: str = "text") -> Path:
    """The folder of a scorer of a form, trained once on a few slates.

    Where it reads words its head has learned and its encoder is the model as it comes.
    """
    told = "" if form == "text" else f"-{form.replace(' ', '-')}"
    out = place / f"scorer-{FORMAT}-{history_tokens}-{model_id(model).replace('@', '-')}{told}"
    if not (out / MANIFEST).exists():
        made = slates(people(24, 20, history_tokens, seed=2))
        freeze = "head" if form == "text" else "lora"
        chosen = settings(history_tokens, model, form, freeze=freeze, epochs=1)
        train(made[:16], made[16:], chosen, FEATURES, out, print)
    return out
