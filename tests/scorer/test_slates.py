"""Packing, and the block mask: a slate in one pass reads as each of its candidates alone."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import DECODERS, logits, make_decoder
from lakerec.errors import ModelError
from lakerec.scorer import prediction
from lakerec.scorer.artefact import Manifest
from lakerec.scorer.base_model import folder
from lakerec.scorer.language_model import TextEncoder, is_decoder, load_encoder
from lakerec.scorer.model import SlateScorer, check_blocks, check_length
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import MASKED_TOKENS, PACK_TOKENS, Packer, Slate, batches

WORDS = ["tea", "garden", "wooden", "train", "kettle", "unbelievable", "x"]
texts = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


def build(place, dtype=torch.float32):
    encoder, tokenizer = load_encoder(place)
    model = SlateScorer(encoder, np.zeros(1, np.float32), np.ones(1, np.float32), dtype)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head[-1].weight)
    return model.eval(), Packer(tokenizer, history_tokens=20, candidate_tokens=8)


@pytest.fixture(scope="module")
def scorer(tiny):
    return build(tiny)


@pytest.fixture(scope="module", params=["bert", *DECODERS])
def any_scorer(models, request):
    return build(models[request.param])


@pytest.fixture(scope="module", params=DECODERS)
def decoder(models, request):
    return build(models[request.param])


def slate(history, candidates):
    return Slate("s", history, candidates, np.zeros((len(candidates), 1), np.float32), None, 0)


@settings(max_examples=40, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=6), texts, st.lists(texts, min_size=1, max_size=4))
@example("", ["tea"], "garden x", ["", *WORDS * 6])
def test_a_slate_in_one_pass_equals_each_candidate_alone(any_scorer, history, candidates, other, more):
    model, packer = any_scorer
    together = logits(model, packer.pack([slate(history, candidates), slate(other, more)]))
    pairs = [(history, text) for text in candidates] + [(other, text) for text in more]
    alone = [logits(model, packer.pack([slate(h, [text])]))[0] for h, text in pairs]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(texts, st.lists(texts, min_size=2, max_size=6), st.integers(0, 5))
def test_a_long_slate_cut_in_pieces_reads_the_same(any_scorer, history, candidates, extra):
    model, packer = any_scorer
    whole = logits(model, packer.pack([slate(history, candidates)]))
    short = Packer.of(packer.tokenizer, packer.form)
    short.longest = 20 + 8 + 3 + extra
    packs = short.pack([slate(history, candidates)])
    assert all(len(pack) <= short.longest for pack in packs)
    assert [row for pack in packs for row in pack.rows] == list(range(len(candidates)))
    np.testing.assert_allclose(logits(model, packs), whole, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=5))
@example("", ["", "tea"])
def test_a_decoder_reads_a_candidate_as_its_plain_forward_pass_does(decoder, history, candidates):
    """Without our mask and positions: history and candidate as one text, its states at the two separators."""
    model, packer = decoder
    packs = [packer.pack([slate(history, [text])])[0] for text in candidates]
    with torch.inference_mode():
        found = model.read(model.collate(packer.pack([slate(history, candidates)])))
        for pack, read in zip(packs, found, strict=True):
            (states,) = model.encoder(torch.from_numpy(pack.ids[None]).long()).last_hidden_state
            end = states[int((pack.owners == 0).sum()) - 1]
            torch.testing.assert_close(read, torch.cat([states[-1], states[-1] * end]), atol=1e-4, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, max_size=5)), min_size=2, max_size=6))
def test_scores_do_not_depend_on_the_company_in_a_pass(any_scorer, people):
    predictor = Predictor(Manifest("v", "b", ["f"], [0.0], [1.0], [0.0, 0.0], {}), *any_scorer)
    slates = [slate(history, candidates) for history, candidates in people]
    alone = [predictor.score([one])[0] for one in slates]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(prediction.BATCH_TOKENS, "cpu", 4096)
        together = predictor.score(slates)
    for one, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-5)


def test_the_scores_depend_on_the_history(any_scorer):
    model, packer = any_scorer
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


def test_a_decoder_begins_as_its_tokenizer_does_and_ends_each_part_with_the_end_of_sequence(decoder):
    packer = decoder[1]
    begin, end = packer.tokenizer.bos_token_id, packer.tokenizer.eos_token_id
    assert packer.tokenizer.cls_token_id is None and packer.tokenizer.sep_token_id is None
    (pack,) = packer.pack([slate("red", ["blue", f"a{packer.tokenizer.eos_token}"])])
    begins = 0 if begin is None else 1
    assert (pack.ids == end).sum() == 3 + (begin == end) and (begin is None or pack.ids[0] == begin)
    ends = np.flatnonzero(np.append(np.diff(pack.owners), 1))
    assert (pack.ids[ends] == end).all() and (pack.owners == 0).sum() == begins + 2
    assert pack.positions[pack.owners > 0].min() == begins + 2


def test_a_tokenizer_without_a_separator_is_refused(tmp_path):
    place = make_decoder(tmp_path, "gpt_neox", end=None)
    with pytest.raises(ModelError, match="end-of-sequence"):
        Packer(load_encoder(place)[1], 20, 8)
    with pytest.raises(ModelError, match="end-of-sequence"):
        TextEncoder(str(place))


def test_the_architecture_says_who_is_a_decoder(models):
    from transformers import AutoConfig

    kinds = {kind: is_decoder(AutoConfig.from_pretrained(place)) for kind, place in models.items()}
    assert kinds == {"bert": False, **dict.fromkeys(DECODERS, True)}
    others = ("roberta", "mpnet", "distilbert", "modernbert", "electra", "nomic_bert", "mistral", "gemma2", "opt")
    assert [is_decoder(AutoConfig.for_model(kind)) for kind in others] == [False] * 6 + [True] * 3
    assert not is_decoder(AutoConfig.for_model("llama", is_causal=False))
    assert not is_decoder(AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True))


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


@pytest.mark.parametrize(("in_pieces", "longest"), [(False, MASKED_TOKENS), (True, PACK_TOKENS)])
def test_a_thousand_candidates_stay_within_the_length_of_a_pack(scorer, in_pieces, longest):
    packer = Packer.of(scorer[1].tokenizer, scorer[1].form, in_pieces)
    packs = packer.pack([slate("tea", ["train kettle garden"] * 1500)])
    assert sum(len(pack.rows) for pack in packs) == 1500
    assert longest - 20 < max(len(pack) for pack in packs) <= longest


def test_a_model_that_ignores_the_mask_is_refused(any_scorer, monkeypatch):
    model, packer = any_scorer
    check_blocks(model, packer, "tiny")
    forward = model.encoder.forward
    deaf = {"attention_mask": None, "pieces": None}
    monkeypatch.setattr(model.encoder, "forward", lambda **given: forward(**{**given, **deaf}))
    with pytest.raises(ModelError, match="block mask"):
        check_blocks(model, packer, "tiny")


def test_the_mask_holds_in_bf16(models):
    for place in models.values():
        check_blocks(*build(place, torch.bfloat16), "tiny")


def test_a_tokenizer_of_another_model_is_refused(models, tmp_path):
    model, _ = build(models["gpt2"])
    with pytest.raises(ModelError, match="index out of range"):
        check_blocks(model, build(models["bert"])[1], "mixed")


def test_a_history_beyond_the_positions_is_refused(any_scorer):
    check_length(any_scorer[0].encoder, 512, "tiny")
    with pytest.raises(ModelError, match="512 positions"):
        check_length(any_scorer[0].encoder, 513, "tiny")


def test_the_bundled_model_is_the_real_one_and_others_are_refused_offline():
    assert (folder("minilm-l6") / "model.safetensors").stat().st_size > 80e6
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        folder("nobody/nothing")


def test_the_machines_threads_share_slates_and_change_no_score(any_scorer):
    model, packer = any_scorer
    slates = [slate(" ".join(WORDS[:n]), WORDS[: 1 + n % 5]) for n in range(9)]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(np.concatenate(prediction.corrections(model, packer, slates)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all() and found[0].std() > 0


def test_a_slate_that_cannot_be_read_is_told_whatever_the_threads(scorer, monkeypatch):
    model, packer = scorer
    before, asked = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(SlateScorer, "read", lambda *given: asked.append(given) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prediction.corrections(model, packer, [slate("tea", ["kettle"])] * 200)
        assert torch.get_num_threads() == 2 and len(asked) < 100  # what had not begun never did
    finally:
        torch.set_num_threads(before)
