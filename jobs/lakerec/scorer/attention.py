"""Attention over a slate: as one product under a block mask, or in pieces that leave out what the mask hides.

In pieces the history attends to itself, and each candidate's tokens to the history and to themselves: of 50 candidates
behind 160 tokens that is a fifth of the pairs of the whole. Architectures that call transformers' attention by its name
can do it; `install` finds out by trying.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_PIECES = "slate"  # the name under which transformers knows it
HELD = 2**26  # numbers of the gathered keys at a time: 256 MiB in float32
CLOSE = 1e-3  # of the largest state: two ways to the same sums in float32


@dataclass(frozen=True)
class Pieces:
    """How the tokens of b packs, padded to t, fall into histories and r candidates, the longest of h and of c tokens.

    past is h, first the length of the shortest history; packs (r,) the pack of each candidate; own (r, c) its tokens'
    places among the b t; own_seen (r, 1, 1 or c, c) which of them it sees, None where all; history (b, 1, 1, h) which
    are no padding, None where all; back (b, t) each token's place among the b h tokens of the histories and the r c of
    the candidates.
    """

    past: int
    first: int
    packs: Tensor
    own: Tensor
    own_seen: Tensor | None
    history: Tensor | None
    back: Tensor
    causal: bool

    @classmethod
    def of(cls, owners: NDArray[np.int64], causal: bool, place: torch.device) -> Pieces:
        """owners (b, t): 0 a token of the history, which comes first, 1, 2, ... of a candidate, -1 padding."""
        packs, tokens = owners.shape
        lengths_of_past = (owners == 0).sum(axis=1)
        h = int(lengths_of_past.max())
        changes = np.diff(owners, axis=1, prepend=0, append=-2) != 0  # where a run begins, and behind the last token
        rows, ends = np.nonzero(changes[:, 1:] & (owners > 0))
        starts = np.nonzero(changes[:, :-1] & (owners > 0))[1]
        lengths = ends + 1 - starts
        c = int(lengths.max(initial=1))
        own = starts[:, None] + np.arange(c)
        is_own = np.arange(c) < lengths[:, None]
        seen = is_own[:, None, None]
        if causal:
            seen = seen & np.tri(c, dtype=np.bool_)[None, None]
        back = np.minimum(np.arange(packs)[:, None] * h + np.arange(tokens), packs * h - 1)
        back[rows[:, None].repeat(c, axis=1)[is_own], own[is_own]] = packs * h + np.flatnonzero(is_own)
        padded = (owners[:, :h] == 0)[:, None, None]

        def told(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(place)

        return cls(
            h,
            int(lengths_of_past.min()),
            told(rows),
            told(rows[:, None] * tokens + np.minimum(own, tokens - 1)),
            None if seen.all() else told(seen),
            None if padded.all() else told(padded),
            told(back),
            causal,
        )

    @cached_property
    def past_mask(self) -> Tensor | None:
        """(b, 1, 1, h) what is added to the logits of a history's keys; None where nothing."""
        return None if self.history is None else _added(self.history, torch.float32)

    @cached_property
    def own_mask(self) -> Tensor | None:
        """(r, 1, 1 or c, c) what is added to the logits of a candidate's own keys; None where nothing."""
        return None if self.own_seen is None else _added(self.own_seen, torch.float32)

    @cached_property
    def of_past(self) -> Tensor:
        """(r, c) the candidates' tokens among the b (t - first) that come behind the shortest history."""
        return self.own - (self.packs[:, None] + 1) * self.first

    @cached_property
    def keys(self) -> Tensor:
        """(r, h + c) the tokens, of b t, that a candidate may see, its own last."""
        before = self.packs[:, None] * self.back.shape[1] + torch.arange(self.past, device=self.own.device)
        return torch.cat([before, self.own], dim=1)

    @cached_property
    def seen(self) -> Tensor | None:
        """(r, 1, 1 or c, h + c) which of the keys a candidate sees, None where all."""
        if self.own_seen is None and self.history is None:
            return None
        shape = (len(self.own), 1, self.own.shape[1] if self.causal else 1, self.past)
        past = self._every(shape) if self.history is None else self.history[self.packs].expand(shape)
        own = self._every((*shape[:3], self.own.shape[1])) if self.own_seen is None else self.own_seen
        return torch.cat([past, own], dim=3)

    def _every(self, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape, dtype=torch.bool, device=self.own.device)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits, of the same shape: nothing where `seen`, elsewhere the least that there is."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def install(encoder: PreTrainedModel, causal: bool, first_position: int) -> bool:
    """Let a model that was loaded with "sdpa" attend in pieces, where it then reads as under the mask; whether so."""
    try:
        masked = _probed(encoder, causal, first_position, in_pieces=False)
        encoder.set_attn_implementation(IN_PIECES)
        # A processor's way without gradients, and the one that is a GPU's as well.
        found = [_probed(encoder, causal, first_position, in_pieces=True, gathered=each) for each in (False, True)]
        same = all(bool((each - masked).abs().max() < CLOSE * masked.abs().max()) for each in found)
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        same = False  # it takes no such mask, or hands nothing on to attention
    if not same:
        encoder.set_attn_implementation("sdpa")
    return same


def _probed(encoder: Any, causal: bool, first_position: int, in_pieces: bool, gathered: bool = False) -> Tensor:
    """(n, d) what the encoder makes of the real tokens of two small packs."""
    owners = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 2, 2, -1, -1, -1]])
    positions = np.array([[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 2, 3, 0, 0, 0]])
    place = next(encoder.parameters()).device
    ids = torch.arange(owners.size, device=place).reshape(owners.shape) % encoder.config.vocab_size
    given = arguments(owners, torch.float32, causal, place, in_pieces)
    given["position_ids"] = torch.from_numpy(positions + first_position).to(place)
    with torch.set_grad_enabled(gathered):
        found: Tensor = encoder(input_ids=ids, **given).last_hidden_state
    return found.detach()[torch.from_numpy(owners >= 0).to(place)]


def arguments(
    owners: NDArray[np.int64], dtype: torch.dtype, causal: bool, place: torch.device, in_pieces: bool
) -> dict[str, Any]:
    """What an encoder is given beside tokens and positions; owners (b, t) as in Pieces."""
    if not in_pieces:
        return {"attention_mask": block_mask(owners, dtype, causal, place)}
    # A mask of four dimensions is taken as it is: no other is made, and _attend looks at none.
    nothing = torch.zeros(1, 1, 1, 1, dtype=dtype, device=place)
    return {"attention_mask": nothing, "pieces": Pieces.of(owners, causal, place)}


def block_mask(owners: NDArray[np.int64], dtype: torch.dtype, causal: bool, place: torch.device) -> Tensor:
    """(b, 1, t, t) additive: a token sees the history and its own candidate; nobody sees padding; owners as Pieces."""
    owner = torch.from_numpy(owners).to(place)
    seen = (owner[:, None, :] == 0) | (owner[:, :, None] == owner[:, None, :])
    if causal:
        seen = seen.tril()
    return _added(seen, dtype)[:, None]


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pieces: Pieces | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query (b, heads, t, d), key and value (b, their heads, t, d) -> (b, t, heads, d); transformers' own without."""
    if pieces is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if any(more.get(name) is not None for name in ("position_bias", "softcap", "s_aux")):
        raise NotImplementedError("attention in pieces knows no biases")
    groups = getattr(module, "num_key_value_groups", 1)
    h = pieces.past
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotated positions may come in float32
    keys, values = (repeat_kv(each[:, :, :h], groups) for each in (key, value))
    mask = None if pieces.causal else pieces.history  # what is padding comes behind all that is read
    history = scaled_dot_product_attention(
        query[:, :, :h], keys, values, attn_mask=mask, is_causal=pieces.causal, dropout_p=dropout, scale=scaling
    )
    tokens = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    if _fits_two(query, pieces):
        candidates: Iterable[Tensor] = [_in_two(query, keys, values, tokens, groups, scaling, pieces)]
    else:
        candidates = _gathered(tokens, groups, dropout, scaling, pieces)
    found = torch.cat([history.transpose(1, 2).flatten(0, 1), *candidates])
    return found.index_select(0, pieces.back.flatten()).unflatten(0, pieces.back.shape), None


def _gathered(
    tokens: list[Tensor], groups: int, dropout: float, scaling: float | None, pieces: Pieces
) -> Iterator[Tensor]:
    """(r c, heads, d) in parts: each candidate with the keys of the history beside its own."""
    heads, size = tokens[0].shape[1:]
    step = max(1, HELD // (pieces.keys.shape[1] * heads * size))
    for at in range(0, len(pieces.keys), step):
        places = pieces.keys[at : at + step]
        queries = _taken(tokens[0], places[:, pieces.past :])
        keys, values = (repeat_kv(_taken(each, places), groups) for each in tokens[1:])
        seen = None if pieces.seen is None else pieces.seen[at : at + step]
        read = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, dropout_p=dropout, scale=scaling)
        yield read.transpose(1, 2).flatten(0, 1)


def _fits_two(query: Tensor, pieces: Pieces) -> bool:
    """Whether `_in_two` can: the kernel is the processor's, tells nothing to gradients, and takes no empty product."""
    known = query.device.type == "cpu" and query.dtype != torch.float64 and not torch.is_grad_enabled()
    return known and pieces.first > 0 and len(pieces.own) > 0


@torch.autocast("cpu", enabled=False)
def _in_two(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tokens: list[Tensor],
    groups: int,
    scaling: float | None,
    pieces: Pieces,
) -> Tensor:
    """(r c, heads, d): all candidates' tokens on the history in one product, each candidate on itself, put together.

    Two softmaxes are one of all keys where each counts by its sum of exponentials (Dao et al. 2022, section 3.1). The
    keys of the history, (b, heads, h, d), are laid out for the product once, not for each candidate. A candidate's own
    products are too small for that kernel: plain ones, in float32, take half of its time.
    """
    # As scaled_dot_product_attention, with the logarithm of each query's sum of exponentials (b, heads, t).
    past, of_past = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[:, :, pieces.first :], keys, values, attn_mask=pieces.past_mask, scale=scaling
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries = _laid_out(_taken(tokens[0], pieces.own))
    own_keys, own_values = (_laid_out(repeat_kv(_taken(each, pieces.own), groups)) for each in tokens[1:])
    own = torch.bmm(queries.flatten(0, 1), own_keys.flatten(0, 1).mT).mul_(scale).view(*queries.shape[:3], -1)
    if pieces.own_mask is not None:
        own.add_(pieces.own_mask)
    read, of_read = (_laid_out(_taken(_rows(each), pieces.of_past)) for each in (past, of_past[..., None]))
    most = torch.maximum(own.amax(dim=3, keepdim=True), of_read)
    own, of_read = own.sub_(most).exp_(), of_read.sub_(most).exp_()
    whole = own.sum(dim=3, keepdim=True).add_(of_read)
    shares, read = own.div_(whole), read.mul_(of_read.div_(whole))
    found = torch.baddbmm(read.flatten(0, 1), shares.flatten(0, 1), own_values.flatten(0, 1)).view_as(read)
    return found.transpose(1, 2).flatten(0, 1).to(query.dtype)


def _laid_out(found: Tensor) -> Tensor:
    """In float32, its dimensions one behind the other in memory, as products in float32 would have it copied."""
    return found.to(torch.float32, memory_format=torch.contiguous_format)


def _rows(found: Tensor) -> Tensor:
    """(b, heads, n, ...) as (b n, heads, ...)."""
    return found.transpose(1, 2).flatten(0, 1)


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    """(r, heads, n, d) of tokens (b t, heads, d) at places (r, n)."""
    # A table of whole rows, taken by their numbers, is six times as fast as an index of two dimensions.
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


AttentionInterface.register(IN_PIECES, _attend)
AttentionMaskInterface.register(IN_PIECES, sdpa_mask)
