"""Where an encoder comes from, how fast it may compute, and texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging

from lakerec.errors import ModelError
from lakerec.scorer.base_model import folder
from lakerec.scorer.slates import special_tokens, tokenise

TEXT_TOKENS = 256  # all-MiniLM-L6-v2 was trained on at most so many
logging.disable_progress_bar()


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def precision(place: str) -> torch.dtype:
    """The dtype of the encoder's matrix products on 'cuda' or 'cpu'; head and scores are always float32.

    bf16 on processors that multiply it (MiniLM forward: AMX 4 times, avx512_bf16 1.5 to 1.7 times faster). A GPU older
    than Ampere takes fp16, whose gradients have to be scaled.
    """
    if place == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether a token sees only earlier ones: the architecture models language left to right, and not by masking."""
    causal, masked = (type(config) in kinds for kinds in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING))
    both_ways = getattr(config, "use_bidirectional_attention", None) in (True, "all")  # EmbeddingGemma
    return causal and not masked and not both_ways and bool(getattr(config, "is_causal", True))


def load_encoder(place: Path) -> tuple[Any, Any]:
    """Encoder or decoder (float32, evaluation mode) and tokenizer of a folder; no pickles, no code from the model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        encoder = AutoModel.from_pretrained(
            place,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = _pickles(place) or str(error).strip().splitlines()[0]
        raise ModelError(
            f"{place}: not an encoder that can be loaded ({reason}); it needs config.json, tokenizer.json "
            "and model.safetensors of an architecture that transformers knows"
        ) from error
    if hasattr(encoder, "pooler"):
        encoder.pooler = None  # only the last hidden states are read
    if is_decoder(encoder.config):
        encoder.config.use_cache = False  # nothing is generated
    encoder.eval()
    return encoder, tokenizer


def first_position(encoder: Any) -> int:
    """RoBERTa and its kin count positions from their padding id + 1, BERT from 0."""
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def _pickles(place: Path) -> str:
    """What to say of a folder whose only weights are pickles, which run code when they are read; else empty."""
    found = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in place.glob(kind))
    if not found or list(place.glob("*.safetensors")):
        return ""
    return (
        f"{', '.join(found)} is a pickle, which may run code when it is read, and is not opened: save it as safetensors"
    )


class TextEncoder:
    """Texts as unit vectors: the mean of the last hidden states (Reimers, Gurevych 2019)."""

    def __init__(self, name: str) -> None:
        self.encoder, self.tokenizer = load_encoder(folder(name))
        self.encoder.to(device())
        self.begin, self.separator = special_tokens(self.tokenizer)

    def encode(self, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
        """Vectors (n, d) float32 of length 1, in the order of the texts; at most `batch` texts at a time."""
        tokens = tokenise(self.tokenizer, texts)
        room = TEXT_TOKENS - len(self.begin) - 1
        ids = [[*self.begin, *tokens[text][:room], self.separator] for text in texts]
        vectors = np.zeros((len(ids), self.encoder.config.hidden_size), dtype=np.float32)
        order = np.argsort([len(row) for row in ids], kind="stable")
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            vectors[places] = self._encode([ids[place] for place in places])
        return vectors

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> NDArray[np.float32]:
        place = device()
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = torch.tensor(ids)
        seen = (torch.arange(padded.shape[1]) < lengths[:, None]).to(place)
        hidden = self.encoder(input_ids=padded.to(place), attention_mask=seen.long()).last_hidden_state
        total = (hidden * seen[:, :, None]).sum(dim=1)
        return torch.nn.functional.normalize(total, dim=1).cpu().numpy()
