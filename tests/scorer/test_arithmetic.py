"""Cheaper arithmetic is used where it ranks as float32 does, refused with its figures elsewhere, and recorded."""

import numpy as np
import pytest
import torch

from conftest import DECODERS, make_slates
from lakerec.config import Scorer, Training
from lakerec.scorer import arithmetic, training
from lakerec.scorer import model as model_module
from lakerec.scorer.arithmetic import compared
from lakerec.scorer.artefact import load, load_manifest
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import Packer, Slate


def slate(labels):
    count = len(labels)
    texts, features = ["x"] * count, np.zeros((count, 1), np.float32)
    return Slate("s", "", texts, features, np.array(labels, np.float32), int(sum(labels)))


def test_the_figures_by_hand():
    slates = [slate([1, 0, 0]), slate([0] * 12)]
    exact = [np.array([3.0, 2.0, 1.0]), np.arange(12.0)]
    same = compared("int8", exact, exact, slates)
    assert (same.overlap, same.ndcg_loss, same.good) == (1.0, 0.0, True)
    other = [np.array([2.0, 3.0, 1.0]), np.arange(12.0)[::-1].copy()]
    found = compared("int8", exact, other, slates)
    assert found.overlap == pytest.approx((1 + 0.8) / 2)
    assert found.ndcg_loss == pytest.approx(1 - 1 / np.log2(3)) and not found.good
    assert "0.900 of the ten best are the same, NDCG@10 loses +0.3691 of 1.0000" in str(found)
    poor = [slate([0] * 200 + [1])]  # of little NDCG little may be lost
    lost = compared("int8", [np.arange(201.0)], [np.append(np.arange(200.0), 198.5)], poor)
    assert lost.ndcg_loss > 0 and not lost.good
    assert compared("narrow", [], [], []).good
    overflown = [np.array([np.nan, 3.0, 1.0]), np.arange(12.0)]
    assert not compared("int8", exact, overflown, slates).good


def trained(tiny, out, kind, lines):
    data = make_slates(200, 1, 9.0, ["red"]), make_slates(50, 2, 9.0, ["red"])
    settings = Training(freeze="full", epochs=3, learning_rate=2e-3, patience=3, token_budget=256)
    scorer = Scorer(model=str(tiny), training=settings, history_tokens=32, candidate_tokens=4, arithmetic=kind)
    scorer = scorer.model_copy(update={"language_model": "always"})
    training.train(*data, scorer, ["noise"], out, lines.append)
    return data[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies in bf16 instead")
@pytest.mark.parametrize("least", [0.0, 1.1], ids=["accepted", "refused"])
def test_eight_bits_are_used_where_they_rank_alike(tiny, tmp_path, monkeypatch, least):
    monkeypatch.setattr(arithmetic, "precision", lambda place: torch.float32)
    monkeypatch.setattr(arithmetic, "LEAST_OVERLAP", least)
    monkeypatch.setattr(arithmetic, "MOST_LOSS", 1.0)
    lines, out = [], tmp_path / "v"
    slates = trained(tiny, out, "int8", lines)
    (told,) = (line for line in lines if "int8 beside float32" in line)
    assert ("refused" in told) == (least > 1)
    settings = load_manifest(out).settings
    assert settings["arithmetic"] == ("float32" if least > 1 else "int8")
    assert settings["agreement"]["kind"] == "int8" and settings["agreement"]["slates"] == 50
    model = load(out)[0]
    quantised = [module for module in model.encoder.modules() if "quantized" in type(module).__module__]
    assert bool(quantised) == (least < 1) and model.dtype == torch.float32
    found = np.concatenate(Predictor.load(out, 1).score(slates))
    assert np.isfinite(found).all() and found.std() > 0


def test_the_machines_own_arithmetic_is_checked_and_float32_never(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "precision", lambda place: torch.bfloat16)
    lines = []
    trained(tiny, tmp_path / "a", "auto", lines)
    assert any("narrow beside float32 on 50 slates" in line for line in lines)
    assert load_manifest(tmp_path / "a").settings["arithmetic"] in ("narrow", "float32")
    lines.clear()
    trained(tiny, tmp_path / "b", "float32", lines)
    assert not any("beside float32" in line for line in lines)
    manifest = load_manifest(tmp_path / "b")
    assert manifest.settings["arithmetic"] == "float32" and manifest.settings["agreement"] == {}
    assert load(tmp_path / "b")[0].dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU casts each product by itself")
@pytest.mark.parametrize("kind", ["bert", *DECODERS])
def test_narrow_weights_read_as_float32_does_and_leave_the_model_as_it_was(models, kind, monkeypatch):
    """Whatever is no weight keeps its digits: rotary frequencies in bf16 would move far positions."""
    monkeypatch.setattr(model_module, "precision", lambda place: torch.bfloat16)
    encoder, tokenizer = load_encoder(models[kind])
    model = SlateScorer(encoder, np.zeros(1, np.float32), np.ones(1, np.float32), torch.bfloat16).eval()
    narrow, exact = model.computing("narrow"), model.computing("float32")
    assert {weight.dtype for weight in narrow.encoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in exact.encoder.parameters()} == {torch.float32}
    for one, other in zip(narrow.encoder.buffers(), model.encoder.buffers(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    packs = Packer(tokenizer, history_tokens=20, candidate_tokens=8).pack(make_slates(8, 3))
    with torch.inference_mode():
        found, wanted = (each.read(each.collate(packs)) for each in (narrow, exact))
    assert found.dtype == torch.float32
    gap = (found - wanted).norm() / wanted.norm()
    assert 0 < gap < 0.03


def test_a_kind_that_is_another_elsewhere_is_judged_by_the_worst(monkeypatch):
    """As int8 on a GPU, where a model is trained, and on the processors that score with it."""
    slates = make_slates(50, 2, 9.0, ["red"])
    good = [slate.labels.astype(float) for slate in slates]
    bad = [-scores for scores in good]

    class Said:
        def __init__(self, scores):
            self.scores = scores

        def logits(self, _):
            return self.scores

    class Model:
        mean = torch.zeros(1)

        def computing(self, kind):
            return good

    monkeypatch.setattr(arithmetic, "computing", lambda model, kind: [good, bad])
    lines = []
    kind, told = arithmetic.chosen(Said, Model(), slates, "int8", lines.append)
    assert kind == "float32" and told["kind"] in ("int8", "narrow") and "refused" in lines[0]


def test_what_is_judged_is_the_order_that_is_served(tiny, tmp_path, monkeypatch):
    """A final order may make much of what moves the logits little."""
    monkeypatch.setattr(arithmetic, "precision", lambda place: torch.bfloat16)
    data = make_slates(200, 1, 9.0, ["red"]), make_slates(50, 2, 9.0, ["red"])
    settings = Training(freeze="full", epochs=1, learning_rate=2e-3, token_budget=256)
    scorer = Scorer(model=str(tiny), training=settings, history_tokens=32, candidate_tokens=4, language_model="always")
    asked = []

    def served(told):
        asked.append(told)
        return [(1.0 if len(asked) % 2 else -1.0) * slate.labels for slate in data[1]]

    training.train(*data, scorer, ["noise"], tmp_path / "v", lambda _: None, None, None, served)
    assert len(asked) == 2 and load_manifest(tmp_path / "v").settings["arithmetic"] == "float32"
    asked.clear()
    training.train(*data, scorer, ["noise"], tmp_path / "w", lambda _: None, None, None, lambda told: told)
    agreement = load_manifest(tmp_path / "w").settings["agreement"]
    assert agreement["kind"] == "narrow" and agreement["overlap"] > 0.5
