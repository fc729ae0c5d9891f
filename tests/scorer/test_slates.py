"""Packing, and the block mask: a slate in one pass reads as each of its candidates alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerec.errors import ModelError
from lakerec.scorer.base_model import folder
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.model import SlateScorer, check_blocks, check_length
from lakerec.scorer.slates import PACK_TOKENS, Packer, Slate, batches

WORDS = ["tea", "garden", "wooden", "train", "kettle", "unbelievable", "x"]
texts = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def scorer(tiny):
    encoder, tokenizer = load_encoder(tiny)
    model = SlateScorer(encoder, np.zeros(1, np.float32), np.ones(1, np.float32), torch.float32)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head[-1].weight)
    return model.eval(), Packer(tokenizer, history_tokens=20, candidate_tokens=8)


def slate(history, candidates):
    return Slate("s", history, candidates, np.zeros((len(candidates), 1), np.float32), None, 0)


@torch.inference_mode()
def logits(model, packs):
    batch = model.collate(packs)
    found = torch.zeros(len(batch.rows))
    found[batch.rows] = model(batch, torch.zeros(len(batch.rows), 1))
    return found.numpy()


@settings(max_examples=40, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=6), texts, st.lists(texts, min_size=1, max_size=4))
def test_a_slate_in_one_pass_equals_each_candidate_alone(scorer, history, candidates, other, more):
    model, packer = scorer
    together = logits(model, packer.pack([slate(history, candidates), slate(other, more)]))
    pairs = [(history, text) for text in candidates] + [(other, text) for text in more]
    alone = [logits(model, packer.pack([slate(h, [text])]))[0] for h, text in pairs]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(texts, st.lists(texts, min_size=2, max_size=6), st.integers(0, 5))
def test_a_long_slate_cut_in_pieces_reads_the_same(scorer, history, candidates, extra):
    model, packer = scorer
    whole = logits(model, packer.pack([slate(history, candidates)]))
    short = Packer(packer.tokenizer, packer.history_tokens, packer.candidate_tokens)
    short.longest = 20 + 8 + 3 + extra
    packs = short.pack([slate(history, candidates)])
    assert all(len(pack) <= short.longest for pack in packs)
    assert [row for pack in packs for row in pack.rows] == list(range(len(candidates)))
    np.testing.assert_allclose(logits(model, packs), whole, atol=1e-4)


def test_the_scores_depend_on_the_history(scorer):
    model, packer = scorer
    one, two = (logits(model, packer.pack([slate(h, ["tea"])])) for h in ("garden train", "kettle x"))
    assert abs(one - two) > 1e-3


def test_the_end_of_the_history_and_the_start_of_a_candidate_are_kept(scorer):
    _, packer = scorer
    long = " ".join(["tea"] * 10_000)
    (pack,) = packer.pack([slate(long + " train", ["kettle " + long])])
    ids = packer.tokenizer.convert_tokens_to_ids
    assert len(pack) == 1 + 20 + 1 + 8 + 1
    assert pack.ids[20] == ids("train") and pack.ids[22] == ids("kettle")
    assert pack.positions.max() == 30


def test_positions_restart_behind_the_history(scorer):
    (pack,) = scorer[1].pack([slate("tea x", ["train", "kettle garden"])])
    assert pack.owners.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]


def test_a_separator_in_a_text_is_text(scorer):
    packer = scorer[1]
    (pack,) = packer.pack([slate("a [SEP] b", ["[CLS] \ud800 \U0001f600"])])
    assert (pack.ids == packer.tokenizer.sep_token_id).sum() == 2
    assert (pack.ids == packer.tokenizer.cls_token_id).sum() == 1


@given(st.lists(st.integers(1, 900), max_size=40), st.integers(64, 2048))
def test_batches_hold_everything_once_within_the_budget(lengths, budget):
    found = batches(lengths, budget)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in found)


def test_a_thousand_candidates_stay_within_the_length_of_a_pack(scorer):
    packs = scorer[1].pack([slate("tea", ["train kettle garden"] * 1000)])
    assert sum(len(pack.rows) for pack in packs) == 1000
    assert max(len(pack) for pack in packs) <= PACK_TOKENS


def test_an_encoder_that_ignores_the_mask_is_refused(scorer, monkeypatch):
    model, packer = scorer
    check_blocks(model, packer, "tiny")
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda **given: forward(**{**given, "attention_mask": None}))
    with pytest.raises(ModelError, match="block mask"):
        check_blocks(model, packer, "tiny")


def test_a_history_beyond_the_positions_is_refused(scorer):
    with pytest.raises(ModelError, match="512 positions"):
        check_length(scorer[0].encoder, 513, "tiny")


def test_the_bundled_model_is_the_real_one_and_others_are_refused_offline():
    assert (folder("minilm-l6") / "model.safetensors").stat().st_size > 80e6
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        folder("nobody/nothing")
