"""Attention over a slate: as one product under a block mask, or in pieces that leave out what the mask hides.

In pieces the history attends to itself, and each candidate's tokens to the history and to themselves: of 50 candidates
behind 160 tokens that is a fifth of the pairs of the whole. Architectures that call transformers' attention by its name
can do it; `install` finds out by trying.
"""

from __future__ import annotations

from dataclasses import dataclass
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
# Numbers of the keys that are held at a time: on a processor what the cache holds, on a GPU what its memory spares.
HELD = {"cpu": 2**18, "cuda": 2**26}
CLOSE = 1e-3  # of the largest state: two ways to the same sums in float32


@dataclass(frozen=True)
class Pieces:
    """How the tokens of b packs, padded to t, fall into histories and r candidates, the longest of h and of c tokens.

    past is h; keys (r, h + c) the tokens, of b t, that a candidate may see, its own last; seen (r, 1, 1 or c, h + c)
    which of them it does, None where all; history (b, 1, 1, h) which are no padding, None where all; back (b, t) each
    token's place among the b h tokens of the histories and the r c of the candidates.
    """

    past: int
    keys: Tensor
    seen: Tensor | None
    history: Tensor | None
    back: Tensor
    causal: bool

    @classmethod
    def of(cls, owners: NDArray[np.int64], causal: bool, place: torch.device) -> Pieces:
        """owners (b, t): 0 a token of the history, which comes first, 1, 2, ... of a candidate, -1 padding."""
        packs, tokens = owners.shape
        h = int((owners == 0).sum(axis=1).max())
        changes = np.diff(owners, axis=1, prepend=0, append=-2) != 0  # where a run begins, and behind the last token
        rows, ends = np.nonzero(changes[:, 1:] & (owners > 0))
        starts = np.nonzero(changes[:, :-1] & (owners > 0))[1]
        lengths = ends + 1 - starts
        c = int(lengths.max(initial=1))
        own = starts[:, None] + np.arange(c)
        is_past, is_own = owners[rows, :h] == 0, np.arange(c) < lengths[:, None]
        before = np.broadcast_to(np.arange(h), (len(rows), h))
        seen = np.concatenate([is_past, is_own], axis=1)[:, None, None]
        if causal:
            seen = seen & (np.arange(h + c) <= h + np.arange(c)[:, None])[None, None]
        back = np.minimum(np.arange(packs)[:, None] * h + np.arange(tokens), packs * h - 1)
        back[rows[:, None].repeat(c, axis=1)[is_own], own[is_own]] = packs * h + np.flatnonzero(is_own)
        padded = (owners[:, :h] == 0)[:, None, None]

        def told(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(place)

        return cls(
            h,
            told(rows[:, None] * tokens + np.concatenate([before, np.minimum(own, tokens - 1)], axis=1)),
            None if seen.all() else told(seen),
            None if causal or padded.all() else told(padded),  # what is padding comes behind all that is read
            told(back),
            causal,
        )


def install(encoder: PreTrainedModel, causal: bool, first_position: int) -> bool:
    """Let a model that was loaded with "sdpa" attend in pieces, where it then reads as under the mask; whether so."""
    try:
        masked = _probed(encoder, causal, first_position, in_pieces=False)
        encoder.set_attn_implementation(IN_PIECES)
        gap = (_probed(encoder, causal, first_position, in_pieces=True) - masked).abs().max()
        same = bool(gap < CLOSE * masked.abs().max())
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        same = False  # it takes no such mask, or hands nothing on to attention
    if not same:
        encoder.set_attn_implementation("sdpa")
    return same


def _probed(encoder: Any, causal: bool, first_position: int, in_pieces: bool) -> Tensor:
    """(n, d) what the encoder makes of the real tokens of two small packs."""
    owners = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 2, 2, -1, -1, -1]])
    positions = np.array([[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 2, 3, 0, 0, 0]])
    place = next(encoder.parameters()).device
    ids = torch.arange(owners.size, device=place).reshape(owners.shape) % encoder.config.vocab_size
    given = arguments(owners, torch.float32, causal, place, in_pieces)
    given["position_ids"] = torch.from_numpy(positions + first_position).to(place)
    with torch.inference_mode():
        found: Tensor = encoder(input_ids=ids, **given).last_hidden_state
    return found[torch.from_numpy(owners >= 0).to(place)]


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
    mask = torch.zeros(seen.shape, dtype=dtype, device=place).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]


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
    how: Any = {"dropout_p": dropout, "scale": scaling}
    h = pieces.past
    keys, values = (repeat_kv(each[:, :, :h], groups) for each in (key, value))
    history = scaled_dot_product_attention(
        query[:, :, :h], keys, values, attn_mask=pieces.history, is_causal=pieces.causal, **how
    )
    tokens = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    step = max(1, HELD[query.device.type] // (pieces.keys.shape[1] * query.shape[1] * query.shape[3]))
    found = [history.transpose(1, 2).flatten(0, 1)]
    for at in range(0, len(pieces.keys), step):
        places = pieces.keys[at : at + step]
        queries = _taken(tokens[0], places[:, h:])
        keys, values = (repeat_kv(_taken(each, places), groups) for each in tokens[1:])
        seen = None if pieces.seen is None else pieces.seen[at : at + step]
        read = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, **how)
        found.append(read.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, pieces.back.flatten()).unflatten(0, pieces.back.shape), None


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    """(r, heads, n, d) of tokens (b t, heads, d) at places (r, n)."""
    # A table of whole rows, taken by their numbers, is six times as fast as an index of two dimensions.
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


AttentionInterface.register(IN_PIECES, _attend)
AttentionMaskInterface.register(IN_PIECES, sdpa_mask)
