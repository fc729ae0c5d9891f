"""Attention in pieces is attention under the block mask: states, gradients, whatever the lengths and the company."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from conftest import DECODERS, SIZES
from lakerec.scorer import attention
from lakerec.scorer.attention import Pieces, arguments, block_mask, install
from lakerec.scorer.language_model import first_position, is_decoder, load_encoder

CPU = torch.device("cpu")
packs = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 5), min_size=1, max_size=5)), min_size=1, max_size=4
)


@pytest.fixture(scope="module", params=["bert", *DECODERS])
def encoder(models, request):
    return installed(models[request.param])


def installed(place):
    """A model's encoder as a scorer has it."""
    encoder = load_encoder(place)[0]
    install(encoder, is_decoder(encoder.config), first_position(encoder))
    return encoder


def attends_in_pieces(encoder):
    return encoder.config._attn_implementation == attention.IN_PIECES


def owners_of(drawn):
    """(b, t) of packs given as the history's length and each candidate's."""
    rows = [np.repeat(np.arange(len(own) + 1), [history, *own]) for history, own in drawn]
    found = np.full((len(rows), max(map(len, rows))), -1)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


def states(encoder, owners, in_pieces):
    """What the encoder makes of the real tokens."""
    ids = torch.arange(owners.size).reshape(owners.shape) * 7 % encoder.config.vocab_size
    given = arguments(owners, torch.float32, is_decoder(encoder.config), CPU, in_pieces)
    return encoder(input_ids=ids, position_ids=torch.arange(owners.shape[1])[None], **given).last_hidden_state[
        torch.from_numpy(owners >= 0)
    ]


@settings(max_examples=40, deadline=None)
@given(packs)
@example([(1, [1])])
@example([(9, [5, 5]), (1, [1])])
def test_pieces_read_as_the_mask_does(encoder, drawn):
    owners, ways = owners_of(drawn), []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        two = attention._in_two
        patch.setattr(attention, "_in_two", lambda *given: ways.append(given) or two(*given))
        found, wanted = (states(encoder, owners, in_pieces) for in_pieces in (True, False))
    assert ways
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float64, 1e-5)])
@pytest.mark.parametrize(
    "drawn", [[(600, [3, 5]), (2, [3] * 40)], [(0, [2]), (3, [1, 600])], [(0, [2])], [(3, []), (3, [])]]
)
def test_long_and_empty_pieces_are_the_mask_in_any_precision(drawn, dtype, far, causal):
    """Beyond the 512 keys that the kernel takes at a time; keys and values of half as many heads."""
    owners = owners_of(drawn)
    query, key, value = (
        torch.randn(len(owners), heads, owners.shape[1], 8, generator=torch.Generator().manual_seed(heads + n))
        for n, heads in enumerate((4, 2, 2))
    )
    mask = block_mask(owners, torch.float32, causal, CPU)
    grown = (each.repeat_interleave(2, dim=1) for each in (key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, *grown, attn_mask=mask).transpose(1, 2)
    module = torch.nn.Identity()
    module.num_key_value_groups = 2
    given = (each.to(dtype) for each in (query, key, value))
    with torch.no_grad():
        found, _ = attention._attend(module, *given, None, pieces=Pieces.of(owners, causal, CPU))
    real = torch.from_numpy(owners >= 0)
    torch.testing.assert_close(found[real].float(), wanted[real], atol=far, rtol=far)


def test_a_candidates_own_products_are_in_float32_whatever_is_cast_around_them():
    owners = owners_of([(60, [3, 5, 4]), (9, [7] * 5)])
    query, key, value = (torch.randn(2, 4, owners.shape[1], 8, dtype=torch.bfloat16) for _ in range(3))
    given, pieces = (torch.nn.Identity(), query, key, value, None), Pieces.of(owners, False, CPU)
    with torch.no_grad():
        wanted, _ = attention._attend(*given, pieces=pieces)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, _ = attention._attend(*given, pieces=pieces)
    assert torch.equal(found[torch.from_numpy(owners >= 0)], wanted[torch.from_numpy(owners >= 0)])


@settings(max_examples=40, deadline=None)
@given(packs, st.sampled_from([1, 40, 2**18]))
@example([(1, [1])], 2**18)
@example([(9, [5, 5]), (1, [1])], 1)
def test_so_they_do_with_their_keys_gathered_as_on_a_gpu(encoder, drawn, held):
    owners = owners_of(drawn)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        wanted = states(encoder, owners, in_pieces=False)
        patch.setattr(attention, "HELD", held * 32)
        patch.setattr(attention, "_in_two", lambda *_: pytest.fail("on a processor alone"))
        patch.setattr(torch, "is_grad_enabled", lambda: True)
        found = states(encoder, owners, in_pieces=True)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_so_do_the_gradients(encoder):
    owners = owners_of([(6, [3, 1, 4]), (2, [2])])
    found = []
    for in_pieces in (True, False):
        encoder.zero_grad()
        states(encoder, owners, in_pieces).square().sum().backward()
        found.append([weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None])
    encoder.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


@given(packs, st.booleans())
def test_the_pieces_of_a_pack_are_the_pairs_of_the_mask(drawn, causal):
    owners = owners_of(drawn)
    pieces, (count, length) = Pieces.of(owners, causal, CPU), owners.shape
    pairs = np.zeros((count, length, length), dtype=bool)
    for row in range(count):
        size = int((owners[row] == 0).sum())
        pairs[row, :size, :size] = np.tril(np.ones((size, size))) if causal else 1
    own = pieces.keys.shape[1] - pieces.past
    shape = (len(pieces.keys), own, pieces.keys.shape[1])
    seen = np.ones(shape, bool) if pieces.seen is None else np.broadcast_to(pieces.seen[:, 0].numpy(), shape)
    read = set(pieces.back[torch.from_numpy(owners > 0)].tolist())
    for candidate, token in np.ndindex(shape[:2]):
        if count * pieces.past + candidate * own + token in read:
            row, query = divmod(int(pieces.keys[candidate, pieces.past + token]), length)
            pairs[
                row, query, pieces.keys[candidate][torch.from_numpy(seen[candidate, token].copy())] - row * length
            ] = True
    wanted = (block_mask(owners, torch.float32, causal, CPU) == 0)[:, 0].numpy() & (owners >= 0)[:, :, None]
    assert (pairs == wanted & (owners >= 0)[:, None]).all()
    assert len(read) == (owners > 0).sum()


def test_the_usual_families_attend_in_pieces_and_a_plain_text_reads_as_ever(models):
    for place in models.values():
        encoder = installed(place)
        assert attends_in_pieces(encoder)
        plain = AutoModel.from_pretrained(place, attn_implementation="sdpa").eval()
        ids, seen = torch.arange(12).reshape(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        with torch.no_grad():
            one, other = (m(input_ids=ids, attention_mask=seen).last_hidden_state for m in (encoder, plain))
        torch.testing.assert_close(one[seen > 0], other[seen > 0])


@pytest.mark.parametrize("kind", ["roberta", "electra", "distilbert", "mistral", "modernbert"])
def test_so_do_their_kin(kind):
    torch.manual_seed(0)
    sizes = {**SIZES, "n_layers": 2, "n_heads": 2, "dim": 32, "num_key_value_heads": 2, "vocab_size": 100}
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=1)
    encoder = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    assert install(encoder, is_decoder(config), first_position(encoder)) and attends_in_pieces(encoder)


@pytest.mark.parametrize("kind", ["stablelm", "esm"])
def test_a_model_with_an_attention_of_its_own_keeps_it(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, num_key_value_heads=2, vocab_size=100, pad_token_id=1)
    encoder = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    assert not install(encoder, is_decoder(config), first_position(encoder)) and not attends_in_pieces(encoder)
    assert encoder.config._attn_implementation == "sdpa"


def test_a_model_that_is_saved_does_not_name_it(models, tmp_path):
    installed(models["bert"]).save_pretrained(tmp_path)
    assert attention.IN_PIECES not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_a_bias_by_position_is_refused():
    pieces = Pieces.of(owners_of([(2, [1])]), False, CPU)
    tokens = torch.zeros(1, 2, 3, 4)
    attend = attention.AttentionInterface()[attention.IN_PIECES]
    attend(torch.nn.Identity(), tokens, tokens, tokens, None, pieces=pieces)
    with pytest.raises(NotImplementedError):
        attend(torch.nn.Identity(), tokens, tokens, tokens, None, pieces=replace(pieces), position_bias=tokens)
