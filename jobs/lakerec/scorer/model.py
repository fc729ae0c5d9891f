"""The scorer: logit = w . features + b + g(what the language model read), one forward pass for a slate."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from lakerec.errors import ModelError
from lakerec.scorer.attention import arguments, install
from lakerec.scorer.item_reader import ItemReader, Items
from lakerec.scorer.language_model import first_position, is_decoder, precision
from lakerec.scorer.slates import Pack, Packer, Past, Picked, Slate

FLOAT32, NARROW, INT8 = "float32", "narrow", "int8"
HEAD_WIDTH = 64
FEATURE_LIMIT = 10.0  # standard deviations: one broken feature must not decide a list


@dataclass(frozen=True)
class Batch:
    """b packs padded to t tokens, n candidates at most; `rows` (r,) are the places of the candidates read.

    `items` are the tokens that are item vectors; `attention` is what the encoder is told of who sees whom.
    """

    ids: Tensor  # (b, t)
    positions: Tensor  # (b, t)
    attention: dict[str, Any]
    pool: Tensor  # (b, 1 + n, t): row 0 reads the history, row i candidate i
    present: Tensor  # (b, n) bool
    rows: Tensor  # (r,)
    items: Items | None = None


def collate(
    packs: Sequence[Pack], place: torch.device, dtype: torch.dtype, causal: bool, in_pieces: bool = False
) -> Batch:
    """Tensors of a batch: a token sees the history and its own candidate; nobody sees padding.

    A candidate is read as the mean of its tokens; where a token sees only what stands before it (`causal`), as its
    last one.
    """
    shape = (len(packs), max(len(pack) for pack in packs))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, -1, dtype=np.int64)
    for row, pack in enumerate(packs):
        span = slice(0, len(pack))
        ids[row, span], positions[row, span], owners[row, span] = pack.ids, pack.positions, pack.owners
    owner = torch.from_numpy(owners).to(place)
    member = owner[:, None, :] == torch.arange(owners.max() + 1, device=place)[:, None]
    if causal:
        member = member & _ends(owner)[:, None, :]
    counts = member.sum(dim=2, keepdim=True)
    return Batch(
        ids=torch.from_numpy(ids).to(place),
        positions=torch.from_numpy(positions).to(place),
        attention=arguments(owners, dtype, causal, place, in_pieces),
        pool=member.float() / counts.clamp(min=1),
        present=counts[:, 1:, 0] > 0,
        rows=torch.cat([torch.arange(pack.rows.start, pack.rows.stop) for pack in packs]),
        items=Items.of(packs, place),
    )


def _ends(owner: Tensor) -> Tensor:
    """Where the next token, (b, t), is another owner's."""
    return owner.diff(dim=1, append=torch.full_like(owner[:, :1], -2)) != 0


class SlateScorer(nn.Module):
    """A prior over the candidates' features, and a correction from the language model that starts at zero."""

    mean: Tensor
    std: Tensor
    encoder: Any

    def __init__(
        self,
        encoder: PreTrainedModel,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        dtype: torch.dtype,
        item_width: int = 0,
    ) -> None:
        super().__init__()
        self.width = width = 2 * encoder.config.hidden_size
        self.encoder, self.dtype = encoder, dtype
        self.causal = is_decoder(encoder.config)
        self.first_position = first_position(encoder)
        self.in_pieces = install(encoder, self.causal, self.first_position)
        self.register_buffer("mean", torch.from_numpy(mean), persistent=False)
        self.register_buffer("std", torch.from_numpy(std), persistent=False)
        self.items = ItemReader.beside(encoder, item_width) if item_width else None
        self.prior = nn.Linear(len(mean), 1)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HEAD_WIDTH), nn.GELU(), nn.Linear(HEAD_WIDTH, 1)
        )
        weight: Tensor
        for weight in (*self.prior.parameters(), *self.head[-1].parameters()):
            nn.init.zeros_(weight)

    def standardise(self, features: Tensor) -> Tensor:
        """Features (r, f) in standard deviations from the training mean; nan counts as the mean."""
        return standardise(features, self.mean, self.std)

    def computing(self, kind: str) -> SlateScorer:
        """The same weights in another arithmetic, for scoring alone.

        narrow: bf16 where the machine multiplies it fast (fp16 on older GPUs), on a processor with the encoder's
        weights and states in it; int8: the linear layers' weights in 8 bits a channel, their inputs as they come
        (dynamic quantisation), on a GPU the same as narrow. To be asked of a model with the weights as they were made.
        """
        made, place = copy.copy(self), self.mean.device.type
        made._modules = dict(self._modules)
        made.dtype = precision(place) if kind == NARROW or (kind == INT8 and place != "cpu") else torch.float32
        if kind == INT8 and place == "cpu":
            made.encoder = _quantised(self.encoder)
        elif made.dtype == torch.bfloat16 and place == "cpu":
            made.encoder = _narrowed(self.encoder, made.dtype)
        return made

    def collate(self, packs: Sequence[Pack]) -> Batch:
        """A batch on the device and in the precision of this model.

        Training reads under the mask: in pieces each candidate's copy of the history would be kept for the gradients.
        """
        in_pieces = self.in_pieces and not torch.is_grad_enabled()
        return collate(packs, self.mean.device, self.dtype, self.causal, in_pieces)

    def read(self, batch: Batch) -> Tensor:
        """The encoder's view of each candidate, (r, 2d) float32: its pooled state, and that times history's."""
        casts = self.dtype != self.encoder.dtype  # the products alone, each with a copy of its weights
        with torch.autocast(batch.ids.device.type, dtype=self.dtype, enabled=casts):
            words = self.encoder.get_input_embeddings()(batch.ids)
            hidden = self.encoder(
                inputs_embeds=words if self.items is None else self.items.put(words, batch.items),
                position_ids=batch.positions + self.first_position,
                **batch.attention,
            ).last_hidden_state
        states = torch.bmm(batch.pool, hidden.float())
        candidates = torch.cat([states[:, 1:], states[:, 1:] * states[:, :1]], dim=2)
        return candidates[batch.present]

    def combine(self, reads: Tensor, features: Tensor) -> Tensor:
        """Logits (r,) float32 from `read`'s (r, 2d) and raw features (r, f)."""
        return self.prior(self.standardise(features)).squeeze(1) + self.correction(reads)

    def correction(self, reads: Tensor) -> Tensor:
        """What the language model adds to the logits (r,), from `read`'s (r, 2d)."""
        return self.head(reads).squeeze(1)

    def forward(self, batch: Batch, features: Tensor) -> Tensor:
        """Logits (r,) of the batch's candidates; features (r, f) in the order of `batch.rows`."""
        return self.combine(self.read(batch), features)


def _narrowed(encoder: Any, dtype: torch.dtype) -> Any:
    """Its weights in a dtype; what is no weight, such as the frequencies of rotated positions, stays as it is."""
    weights = {id(weight): nn.Parameter(weight.detach().to(dtype), False) for weight in encoder.parameters()}
    return copy.deepcopy(encoder, weights)


def _quantised(encoder: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        return quantize_dynamic(encoder, {nn.Linear: per_channel_dynamic_qconfig})


def standardise(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Features (r, f) in standard deviations from the mean, at most FEATURE_LIMIT; nan counts as the mean."""
    return torch.nan_to_num((features - mean) / std, nan=0.0).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)


def check_length(encoder: PreTrainedModel, tokens: int, name: str) -> None:
    """Raise ModelError where the encoder has fewer positions than history and candidate need."""
    known = getattr(encoder.config, "max_position_embeddings", tokens) - first_position(encoder)
    if tokens > known:
        raise ModelError(
            f"scorer.model {name}: knows {known} positions, history_tokens + candidate_tokens + 3 = "
            f"{tokens}; shorten scorer.history_tokens"
        )


def check_blocks(model: SlateScorer, packer: Packer, name: str) -> None:
    """Raise ModelError where the encoder ignores a block mask: a slate must read as its candidates alone."""
    texts = ["red wooden train for children", "kettle", "a book about gardens"]
    probe = [Slate("probe", "bought tea, viewed a blue cup", texts, np.zeros((3, 0), np.float32), None, 0)]
    if model.items is not None:
        probe = [_with_vectors(probe[0], model.items.width)]
    vectors = [probe[0].vectors and probe[0].vectors.slice(place, place + 1) for place in range(len(texts))]
    alone = [replace(probe[0], texts=[text], vectors=mine) for text, mine in zip(texts, vectors, strict=True)]
    try:
        with torch.inference_mode():
            together, apart = (model.read(model.collate(packer.pack(s))) for s in (probe, alone))
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"scorer.model {name}: does not take tokens, positions and a 4D mask ({error})") from error
    gap, size = float((together - apart).abs().max()), float(apart.abs().max())
    if gap > 0.05 * size:  # bf16 keeps 3 digits; a mask that is ignored moves the states by their own size
        raise ModelError(
            f"scorer.model {name}: a slate reads otherwise than its candidates alone "
            f"(by {gap:.3g} of {size:.3g}); its architecture ignores the block mask: "
            "name a BERT-like encoder, or a decoder such as Llama, Qwen or GPT-2"
        )


def _with_vectors(slate: Slate, width: int) -> Slate:
    """A slate with item vectors of a width."""
    table, two = np.eye(len(slate.texts), width, dtype=np.float32), np.arange(2)
    past = Past(Picked(table, two), np.zeros(2, dtype=np.int64), np.array([9.0, 1.0]))
    return replace(slate, past=past, vectors=Picked(table, np.arange(len(slate.texts))))
