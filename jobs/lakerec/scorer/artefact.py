"""A trained scorer as a folder: a plain encoder, its tokenizer, the head, a manifest of each file's hash."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lakerec.errors import ModelError
from lakerec.scorer.language_model import device, load_encoder, precision
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.slates import Form, Packer

FORMAT = 3
MANIFEST, HEAD = "manifest.json", "head.safetensors"
ENCODER = "encoder."  # how the names of its weights begin


@dataclass(frozen=True)
class Manifest:
    """What an artefact holds and how it was made; `files` are SHA-256 by file name.

    `prior` are the weights of the standardised features, and the bias. settings["language_model"] says whether the
    artefact has one: without, a score is the prior's. `alone` are the prior's weights as fitted without the language
    model, where `prior` became log odds only together with it; empty where `prior` tells probabilities by itself.
    """

    version: str
    base_model: str
    feature_names: list[str]
    mean: list[float]
    std: list[float]
    prior: list[float]
    settings: dict[str, Any]
    alone: list[float] = field(default_factory=list)
    format: int = FORMAT
    files: dict[str, str] = field(default_factory=dict)

    @property
    def language_model(self) -> bool:
        """Whether the language model corrects the prior."""
        return bool(self.settings.get("language_model", True))


def save(
    out: Path,
    model: SlateScorer,
    tokenizer: PreTrainedTokenizerFast,
    manifest: Manifest,
    beside: Callable[[Path], None] | None = None,
) -> Manifest:
    """Write the artefact beside `out` and rename it there: a reader sees all of it or nothing.

    An artefact that is there stays, and is what is told: it may serve by now.
    """
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        if manifest.language_model:
            model.encoder.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            save_file(head_weights(model), draft / HEAD)
        if beside is not None:
            beside(draft)
        found = sorted(file for file in draft.rglob("*") if file.is_file())
        files = {file.relative_to(draft).as_posix(): sha256(file) for file in found}
        complete = replace(manifest, files=files)
        (draft / MANIFEST).write_text(json.dumps(asdict(complete), indent=1), encoding="utf-8")
        if not (out / MANIFEST).exists():
            shutil.rmtree(out, ignore_errors=True)
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return load_manifest(out)


def head_weights(model: SlateScorer) -> dict[str, Any]:
    """The weights that are not the encoder's."""
    return {k: v.cpu() for k, v in model.state_dict().items() if not k.startswith(ENCODER)}


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_manifest(path: Path) -> Manifest:
    """The manifest of an artefact; raises ModelError where there is none or of another format."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**content)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path / MANIFEST}: no manifest of a scorer ({error}); train again") from error
    if manifest.format != FORMAT:
        raise ModelError(f"{path}: format {manifest.format}, this release reads {FORMAT}; train again")
    return manifest


def checked(path: Path) -> Manifest:
    """The manifest of an artefact that is whole; ModelError names a file that is missing or differs from its hash."""
    manifest = load_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected:
            fault = "differs from its hash" if file.is_file() else "is missing"
            raise ModelError(f"{file}: {fault}; copy the artefact again or train it again")
    return manifest


def load(path: Path, arithmetic: str | None = None) -> tuple[SlateScorer, Packer, Manifest]:
    """A language model ready to predict, of an artefact that has one; arithmetic: other than it records."""
    manifest = checked(path)
    encoder, tokenizer = load_encoder(path)
    model = build(encoder, _array(manifest.mean), _array(manifest.std), manifest.settings.get("item_width", 0))
    missing, unexpected = model.load_state_dict(load_file(path / HEAD), strict=False)
    if wrong := [*(name for name in missing if not name.startswith(ENCODER)), *unexpected]:
        raise ModelError(f"{path / HEAD}: weights that are missing or not known: {', '.join(wrong)}; train again")
    settings = manifest.settings
    model = model.eval()
    if kind := arithmetic or settings.get("arithmetic"):
        model = model.computing(kind)
    return model, Packer.of(tokenizer, Form.of(settings), model.in_pieces), manifest


def build(
    encoder: PreTrainedModel, mean: NDArray[np.float32], std: NDArray[np.float32], item_width: int = 0
) -> SlateScorer:
    """A scorer on this machine's device, in the fastest precision it is good at; item_width: of item vectors read."""
    place = device()
    return SlateScorer(encoder, mean, std, precision(place.type), item_width).to(place)


def _array(values: list[float]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
