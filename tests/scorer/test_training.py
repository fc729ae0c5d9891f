"""Training learns what only the text tells, twice the same, and survives a kill."""

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import DECODERS, SIZES, make_slates
from lakerec.config import Scorer, Training
from lakerec.errors import ContractError, ModelError
from lakerec.scorer import artefact, fitting, training
from lakerec.scorer.artefact import HEAD, checked, load, sha256
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.model import FLOAT32
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import Packer, Slate

WEIGHTS = ("model.safetensors", "head.safetensors", "manifest.json")
WORST = 10.0  # noise that leaves the feature worthless: only the text can tell


def settings_of(tiny, language_model="always", **changes):
    values = {"freeze": "full", "epochs": 3, "learning_rate": 2e-3, "patience": 3, **changes}
    sizes = {"history_tokens": 32, "candidate_tokens": 4, "language_model": language_model}
    return Scorer(model=str(tiny), training=Training(**values), **sizes)


def fit(tiny, out, slates=60, beside=None, **changes):
    lines = []
    data = make_slates(slates, 1, WORST), make_slates(30, 2, WORST)
    report = training.train(*data, settings_of(tiny, **changes), ["noise"], out, lines.append, beside)
    return report, lines


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "v1"
    return (*fit(tiny, out), out)


def test_the_report_and_the_progress(trained):
    report, lines, _ = trained
    assert len(report.valid_loss) == len(report.train_loss) + 1
    assert report.best_loss == min(report.valid_loss) and report.prior_loss == report.valid_loss[0]
    assert report.slates == 60 and report.tokens > 0 and report.tokens_per_second > 0
    assert any("slates/s" in line and "left" in line for line in lines)


def test_the_language_model_learns_what_the_features_do_not_tell(tiny, tmp_path):
    data = (make_slates(count, seed, WORST, ["red"]) for count, seed in ((200, 1), (50, 2)))
    scorer = settings_of(tiny, epochs=4, token_budget=256)
    report = training.train(*data, scorer, ["noise"], tmp_path / "v", lambda _: None)
    assert report.best_loss < report.prior_loss / 2


@pytest.mark.parametrize("freeze", ["head", "lora", "full"])
def test_the_same_data_give_the_same_files(tiny, tmp_path, freeze):
    for name in ("a", "b"):
        fit(tiny, tmp_path / name / "v", slates=20, epochs=1, freeze=freeze)
    for file in WEIGHTS:
        assert sha256(tmp_path / "a" / "v" / file) == sha256(tmp_path / "b" / "v" / file), file


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("freeze", ["head", "lora", "full"])
def test_the_artefact_scores_as_the_trained_model(models, tmp_path, freeze, kind):
    out = tmp_path / "v"
    report, _ = fit(models[kind], out, slates=40, freeze=freeze, learning_rate=5e-3)
    slates = make_slates(30, 2, WORST)
    scores, labels = (
        np.concatenate(Predictor.load(out, 1).score(slates)),
        np.concatenate([s.labels for s in slates]),
    )
    loss = -np.mean(np.log(np.where(labels > 0, scores, 1 - scores)))
    assert loss == pytest.approx(report.best_loss, abs=5e-3)  # a merged adapter is rounded once more
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("kind", ["bert", *DECODERS])
def test_an_adapter_reaches_every_block_and_merged_reads_as_before(models, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(artefact, "precision", lambda _: torch.float32)
    encoder, tokenizer = load_encoder(models[kind])
    model = artefact.build(encoder, np.zeros(1, np.float32), np.ones(1, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        training.apply_freeze(model, Training(freeze="lora", lora_rank=2))
    trained = {name: w for name, w in model.encoder.named_parameters() if w.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert all(any(f".{block}." in name for name in trained) for block in range(SIZES["num_hidden_layers"]))
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.1)
    packs = Packer(tokenizer, 32, 4).pack(make_slates(6, 4))
    with torch.inference_mode():
        before = model.read(model.collate(packs))
        model.encoder = model.encoder.merge_and_unload()
        sizes = {"history_tokens": 32, "candidate_tokens": 4}
        artefact.save(tmp_path / "v", model, tokenizer, artefact.Manifest("v", kind, ["f"], [0], [1], [0, 0], sizes))
        found, packer, _ = load(tmp_path / "v")
        after = found.read(found.collate(packer.pack(make_slates(6, 4))))
    assert found.causal == (kind != "bert")
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def saved(tiny, out):
    """An untrained model as an artefact; its manifest."""
    encoder, tokenizer = load_encoder(tiny)
    model = artefact.build(encoder, np.zeros(1, np.float32), np.ones(1, np.float32))
    sizes = {"history_tokens": 32, "candidate_tokens": 4}
    return artefact.save(out, model, tokenizer, artefact.Manifest(out.name, "tiny", ["f"], [0], [1], [0, 0], sizes))


def test_an_artefact_that_is_there_is_not_replaced(tiny, tmp_path):
    out = tmp_path / "v"
    out.mkdir()
    (out / "half").write_text("of a run that was killed")
    first = saved(tiny, out)
    assert checked(out) == first and not (out / "half").exists()
    (out / "manifest.json").write_text(json.dumps(json.loads((out / "manifest.json").read_text()) | {"version": "1st"}))
    assert saved(tiny, out).version == checked(out).version == "1st"
    assert [place.name for place in tmp_path.iterdir()] == ["v"]


def test_a_draft_of_a_killed_run_of_the_same_process_id_is_in_nobodys_way(tiny, tmp_path):
    (tmp_path / f".v.{os.getpid()}").mkdir()
    saved(tiny, tmp_path / "v")
    assert checked(tmp_path / "v")


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_a_head_that_is_not_whole_is_not_loaded(tiny, tmp_path, fault):
    out = tmp_path / "v"
    manifest = saved(tiny, out)
    weights = load_file(out / HEAD)
    name, weight = weights.popitem()
    save_file(weights if fault == "missing" else weights | {name: weight, "more": weight.clone()}, out / HEAD)
    told = vars(manifest) | {"files": manifest.files | {HEAD: sha256(out / HEAD)}}
    (out / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=rf"{HEAD}: weights .*: {name if fault == 'missing' else 'more'}; train again"):
        load(out)


def test_a_decoder_learns_what_the_features_do_not_tell(models, tmp_path):
    data = (make_slates(count, seed, WORST, ["red"]) for count, seed in ((200, 1), (50, 2)))
    scorer = settings_of(models["llama"], epochs=4, token_budget=256)
    report = training.train(*data, scorer, ["noise"], tmp_path / "v", lambda _: None)
    assert report.best_loss < report.prior_loss / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has its own memory")
def test_the_weights_of_an_artefact_are_mapped_not_copied(trained):
    """Workers of one machine share them: the pages are the file's. But for bf16, in which each has its own."""
    model, _, _ = load(trained[2], FLOAT32)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    spans = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps if str(trained[2]) in fields[-1]]
    weights = list(model.encoder.parameters())
    assert weights and all(any(low <= w.data_ptr() < high for low, high in spans) for w in weights)


def test_training_starts_at_the_quality_of_the_features(tiny, tmp_path):
    clear = make_slates(200, 1, 0.2), make_slates(50, 2, 0.2)
    report = training.train(*clear, settings_of(tiny, epochs=1), ["score"], tmp_path / "v", lambda _: None)
    assert report.prior_loss < 0.15


def with_put_in(slates):
    """Where the last candidate is a negative, another in its stead: of the same text, of a far lower feature."""
    return [
        slate
        if slate.labels[-1]
        else replace(slate, features=slate.features - 5 * np.eye(len(slate.texts))[-1:].T, instead=slate.features[-1:])
        for slate in slates
    ]


def test_what_was_put_in_to_learn_from_changes_nothing_of_what_the_features_tell(tiny, tmp_path):
    plain, valid = make_slates(60, 1, 0.5), make_slates(30, 2, 0.5)
    changed = [slate for slate in with_put_in(plain) if slate.put_in]
    assert 20 < len(changed) < len(plain)
    for name, slates in (("plain", plain), ("put in", with_put_in(plain))):
        scorer = settings_of(tiny, "never")
        report = training.train(slates, valid, scorer, ["score"], tmp_path / name, lambda _: None)
        assert report.passed_over == (0 if slates is plain else len(changed))
    found = [checked(tmp_path / name) for name in ("plain", "put in")]
    assert (found[0].mean, found[0].std, found[0].prior) == (found[1].mean, found[1].std, found[1].prior)


def test_what_learned_from_what_was_put_in_tells_the_probability_of_slates_as_served(tiny, tmp_path):
    told, valid = with_put_in(make_slates(120, 1, WORST, ["red"])), make_slates(50, 2, WORST, ["red"])
    scorer = settings_of(tiny, epochs=3, token_budget=256)
    report = training.train(told, valid, scorer, ["noise"], tmp_path / "v", lambda _: None)
    assert report.best_epoch > 0 and report.scale != 1 and checked(tmp_path / "v").alone
    found = np.concatenate(Predictor.load(tmp_path / "v", 1).score(valid))
    assert found.mean() == pytest.approx(np.concatenate([slate.labels for slate in valid]).mean(), abs=0.01)


def test_a_checkpoint_of_other_slates_as_served_is_of_another_training(tiny):
    scorer, (slate,) = settings_of(tiny), make_slates(1, 1)
    others = [slate, *(replace(slate, instead=slate.features[-1:] + step) for step in (0, 1))]
    assert len({training.fingerprint([other], scorer, "m") for other in others}) == 3


def test_the_best_weights_are_kept(tiny, tmp_path):
    report, _ = fit(tiny, tmp_path / "v", slates=10, learning_rate=0.5, epochs=2, patience=2)
    assert report.best_epoch == 0 and max(report.valid_loss) > report.prior_loss
    model, _, _ = load(tmp_path / "v")
    assert float(model.head[-1].weight.detach().abs().max()) == 0


def by_hand(manifest, slate):
    """P(positive) by the manifest alone: the logistic of the standardised features' weighted sum."""
    z = np.clip(np.nan_to_num((slate.features - manifest.mean) / np.array(manifest.std)), -1e6, 1e6)
    return 1 / (1 + np.exp(-(z @ np.array(manifest.prior[:-1]) + manifest.prior[-1])))


@pytest.mark.parametrize(
    ("wanted", "rate", "kept"),
    [("auto", 0.5, False), ("auto", 2e-3, True), ("always", 0.5, True), ("never", 2e-3, False)],
)
def test_a_language_model_that_lowers_no_loss_is_left_out_unless_it_is_wanted(tiny, tmp_path, wanted, rate, kept):
    out, told = tmp_path / "v", (make_slates(n, seed, WORST, ["red"]) for n, seed in ((80, 1), (40, 2)))
    scorer = settings_of(tiny, wanted, epochs=2, learning_rate=rate, token_budget=256)
    report = training.train(*told, scorer, ["noise"], out, lambda _: None)
    assert wanted != "auto" or (report.best_epoch > 0) == kept
    assert (len(report.train_loss) == 0) == (wanted == "never")
    assert report.language_model == checked(out).language_model == kept
    assert (out / "model.safetensors").exists() == (out / "tokenizer.json").exists() == kept
    predictor, slates = Predictor.load(out, 1), make_slates(12, 3, WORST)
    assert (predictor.model is not None) == kept
    for prior, score, slate in zip(predictor.prior(slates), predictor.score(slates), slates, strict=True):
        assert prior.dtype == np.float32 and np.allclose(prior, by_hand(predictor.manifest, slate), atol=1e-6)
        assert kept or np.array_equal(score, prior)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("wish", ["auto", "always"])
@pytest.mark.parametrize("worth", [True, False])
def test_a_language_model_that_does_not_pay_is_left_out_unless_it_is_wanted(tiny, tmp_path, wish, worth):
    asked = []

    def pays(told):
        asked.append(told)
        return worth

    data, out = (make_slates(200, 1, WORST, ["red"]), make_slates(50, 2, WORST, ["red"])), tmp_path / "v"
    scorer = settings_of(tiny, epochs=4, token_budget=256, language_model=wish)
    scorer = scorer.model_copy(update={"arithmetic": FLOAT32})  # the order is asked in it, whatever scores afterwards
    report = training.train(*data, scorer, ["noise"], out, lambda _: None, None, pays)
    assert report.best_epoch > 0 and report.language_model == (worth or wish == "always")
    ((told),) = asked
    assert [len(each) for each in told] == [len(slate.texts) for slate in data[1]]
    predictor = Predictor.load(out, 1)
    found = predictor.corrections(data[1])
    if report.language_model:
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, told, strict=True))
    else:
        assert not np.concatenate(found).any() and np.concatenate(told).any()


def test_a_prior_is_a_matter_of_its_slate_alone_to_the_last_bit(tiny, tmp_path):
    fit(tiny, tmp_path / "v", slates=10, language_model="never")
    predictor, slates = Predictor.load(tmp_path / "v", 1), make_slates(60, 5)
    together = predictor.score(slates)
    assert all(
        np.array_equal(predictor.score([slate])[0], found) for slate, found in zip(slates, together, strict=True)
    )
    with pytest.raises(ContractError, match="slate w"):
        predictor.score([type(slates[0])("w", "", ["a"], np.zeros((1, 2), np.float32), None, 0)])


def test_what_stands_beside_is_part_of_the_artefact_and_is_watched(tiny, tmp_path):
    def beside(folder, _language_model):
        (folder / "deep").mkdir()
        (folder / "deep" / "more.txt").write_text("more")

    out = tmp_path / "v"
    fit(tiny, out, slates=10, epochs=1, beside=beside, language_model="never")
    assert list(checked(out).files) == ["deep/more.txt"]
    (out / "deep" / "more.txt").write_text("less")
    with pytest.raises(ModelError, match=r"more\.txt: differs"):
        checked(out)
    with pytest.raises(ModelError, match=r"more\.txt: differs"):
        Predictor.load(out, 1)


def test_a_fault_beside_leaves_no_artefact(tiny, tmp_path):
    def beside(folder, _language_model):
        (folder / "half.txt").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fit(tiny, tmp_path / "v", slates=10, epochs=1, beside=beside, language_model="never")
    assert list(tmp_path.iterdir()) == []


def test_what_the_head_has_learned_first_is_where_the_rest_begins(tiny, tmp_path):
    data = [make_slates(count, seed, WORST, ["red"]) for count, seed in ((200, 1), (50, 2))]

    def fitted(freeze, **changes):
        lines, scorer = [], settings_of(tiny, freeze=freeze, token_budget=256, **changes)
        return training.train(*data, scorer, ["noise"], tmp_path / freeze, lines.append), lines

    head, _ = fitted("head")
    both, lines = fitted("head+full")
    assert both.ahead == 3 and len(both.valid_loss) == 7 and both.valid_loss[:4] == head.valid_loss
    assert both.best_epoch > 3 and both.best_loss < head.best_loss
    assert sum(line.startswith("head first: 200 slates") and "features alone" in line for line in lines) == 1
    assert any(line.startswith("epoch 1: ") for line in lines[lines.index("now full, from the head of epoch 3") :])


def test_the_head_stays_where_nothing_behind_it_is_better(tiny, tmp_path, monkeypatch):
    data, update = [make_slates(count, seed, WORST, ["red"]) for count, seed in ((60, 1), (30, 2))], fitting.Run._update

    def spoiling(run, steps, share):
        found = update(run, steps, share)
        if run.report.ahead:
            torch.nn.init.normal_(run.model.head[-1].weight, std=9.0)
        return found

    head = training.train(*data, settings_of(tiny, freeze="head"), ["noise"], tmp_path / "h", lambda _: None)
    monkeypatch.setattr(fitting.Run, "_update", spoiling)
    scorer = settings_of(tiny, freeze="head+lora", patience=1)
    both = training.train(*data, scorer, ["noise"], tmp_path / "b", lambda _: None)
    assert 0 < both.best_epoch <= both.ahead and len(both.train_loss) == both.ahead + 1  # patience counts anew
    assert both.best_loss == min(head.valid_loss[: both.ahead + 1])
    slates = make_slates(20, 3, WORST)
    for one, two in zip(*(Predictor.load(tmp_path / name, 1).logits(slates) for name in "hb"), strict=True):
        np.testing.assert_allclose(one, two, atol=5e-3)


def test_patience_ends_a_training(tiny, tmp_path):
    report, _ = fit(tiny, tmp_path / "v", slates=10, learning_rate=0.5, epochs=5, patience=1)
    assert len(report.train_loss) == 1


SCRIPT = """
import os, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_training as t
from lakerec.scorer import fitting
{amid}
report, lines = t.fit(Path({tiny!r}), Path({out!r}), freeze={freeze!r}, **t.KILLED)
"""
KILLED = {"slates": 40, "epochs": 4, "token_budget": 192}


AMID = """
fitting.SAVED_EVERY, update, updates = 0.0, fitting.Run._update, []
def dying(run, *given):
    updates.append(given)
    if len(updates) == {at}:
        os.kill(os.getpid(), 9)
    return update(run, *given)
fitting.Run._update = dying
"""


KILLS = {
    "between epochs": ("full", "", "checkpoint"),
    "amid an epoch": ("full", AMID.format(at=2), "checkpoint"),
    "as the head learns": ("head+full", AMID.format(at=2), "head"),
    "between the stages": ("head+lora", AMID.format(at=31), "checkpoint"),  # three epochs of the head are 30 updates
    "behind the head": ("head+lora", AMID.format(at=32), "checkpoint"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_training_goes_on_to_the_same_weights(tiny, tmp_path, kill):
    freeze, amid, left = KILLS[kill]
    whole, broken = tmp_path / "whole" / "v", tmp_path / "broken" / "v"
    told = {"tests": str(Path(__file__).parent), "tiny": str(tiny), "out": str(broken), "amid": amid, "freeze": freeze}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT.format(**told)])
    checkpoint = broken.with_name(f".v.{left}")
    until = time.monotonic() + 120
    while (amid or not checkpoint.exists()) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert checkpoint.exists() and not broken.exists()
    report, lines = fit(tiny, broken, freeze=freeze, **KILLED)
    (line,) = [line for line in lines if "resumed after epoch" in line]
    assert str(checkpoint) in line and (" and 1 steps from " in line) == (bool(amid) and kill != "between the stages")
    assert any("head first: " in line for line in lines) == (left == "head")  # else it has learned
    expected, _ = fit(tiny, whole, freeze=freeze, **KILLED)
    assert report.valid_loss == expected.valid_loss and not list(broken.parent.glob(".*"))
    assert [sha256(whole / f) for f in WEIGHTS] == [sha256(broken / f) for f in WEIGHTS]


BUDGET = {"slates": 60, "epochs": 3, "token_budget": 192}


@pytest.fixture
def updates(monkeypatch):
    """The share of the learning rate of each update, by a clock on which it takes a minute and nothing else does."""
    rates, update = [], fitting.Run._update

    def timed(run, *given):
        found = update(run, *given)
        rates.append(run.optimiser.param_groups[0]["lr"] / run.optimiser.param_groups[0]["rate"])
        return found

    monkeypatch.setattr(fitting.Run, "_update", timed)
    monkeypatch.setattr(fitting, "time", SimpleNamespace(perf_counter=lambda: 60.0 * len(rates)))
    return rates


@pytest.mark.parametrize("epochs", [0.6, 1.6])
def test_a_budget_ends_a_training_amid_an_epoch_that_counts(tiny, tmp_path, updates, epochs):
    def fitted(**limit):
        data = (make_slates(count, seed, WORST, ["red"]) for count, seed in ((200, 1), (50, 2)))
        lines, scorer = [], settings_of(tiny, epochs=3, token_budget=256, **limit)
        return training.train(*data, scorer, ["noise"], tmp_path / str(len(limit)), lines.append), lines

    fitted()
    minutes, done = round(len(updates) / 3 * epochs), round(epochs + 0.4)
    updates.clear()
    report, lines = fitted(max_minutes=minutes)
    assert len(updates) == minutes
    assert len(report.train_loss) == len(report.epoch_seconds) == done and len(report.valid_loss) == done + 1
    assert report.best_epoch == done and report.best_loss < report.prior_loss
    assert sum(f"{minutes} minutes" in line and f"epoch {done} of 3" in line for line in lines) == 1
    top = int(np.argmax(updates))  # warmed up, and down to nothing as the time runs out
    assert updates[top] > 0.85 and 0 < updates[-1] < 2 / minutes and (np.diff(updates[top:]) < 0).all()


@pytest.mark.parametrize(("minutes", "stages"), [(7, 1), (50, 2)])
def test_stages_share_a_budget_and_each_warms_up(tiny, tmp_path, updates, minutes, stages):
    data = [make_slates(count, seed, WORST, ["red"]) for count, seed in ((200, 1), (50, 2))]
    scorer, lines = settings_of(tiny, freeze="head+full", epochs=2, token_budget=256, max_minutes=minutes), []
    report = training.train(*data, scorer, ["noise"], tmp_path / "v", lines.append)
    assert len(updates) == minutes and sum("minutes of scorer.training.max_minutes" in line for line in lines) == 1
    assert any(line.startswith("now full, ") for line in lines) == (stages == 2)
    assert report.best_epoch > 0 and (len(report.train_loss) > report.ahead) == (stages == 2)
    first = round(sum(report.epoch_seconds[: report.ahead]) / 60)  # a minute each
    if stages == 2:
        assert updates[first] < 0.9 < max(updates[first:]) and updates[-1] < 0.2


def test_a_budget_that_is_not_used_up_changes_nothing(tiny, tmp_path, updates):
    free, free_lines = fit(tiny, tmp_path / "free", **BUDGET)
    bound, lines = fit(tiny, tmp_path / "bound", max_minutes=1000, **BUDGET)
    assert bound.valid_loss == free.valid_loss and len(lines) == len(free_lines)
    assert len({sha256(tmp_path / name / "model.safetensors") for name in ("free", "bound")}) == 1


@pytest.mark.parametrize("died", [7, 18, 25])
def test_a_killed_training_has_no_new_budget(tiny, tmp_path, updates, monkeypatch, died):
    monkeypatch.setattr(fitting, "SAVED_EVERY", 0.0)
    minutes, save = 25, fitting.Run._save
    expected, _ = fit(tiny, tmp_path / "whole", max_minutes=minutes, **BUDGET)
    updates.clear()

    def dying(*given):
        save(*given)
        if len(updates) == died:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(fitting.Run, "_save", dying)
        with pytest.raises(SystemExit):
            fit(tiny, tmp_path / "v", max_minutes=minutes, **BUDGET)
    report, lines = fit(tiny, tmp_path / "v", max_minutes=minutes, **BUDGET)
    assert lines[0].startswith("resumed after epoch") and " steps from " in lines[0] and len(updates) == minutes
    assert (report.valid_loss, report.epoch_seconds) == (expected.valid_loss, expected.epoch_seconds)
    assert len({sha256(tmp_path / name / "model.safetensors") for name in ("v", "whole")}) == 1


def test_a_checkpoint_of_other_data_is_not_resumed(tiny, tmp_path, monkeypatch):
    out = tmp_path / "v"
    with monkeypatch.context() as patch:
        patch.setattr(training, "save", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            fit(tiny, out, slates=10, epochs=1)
    _, lines = fit(tiny, out, slates=12, epochs=1)
    assert not any("resumed" in line for line in lines)


def of_one_class(kind):
    """Slates without a hit, of hits alone, without a candidate; none."""
    if kind == "none":
        return []
    labels = {"misses": np.zeros(3, np.float32), "hits": np.ones(3, np.float32), "empty": np.zeros(0, np.float32)}[kind]
    features = np.linspace(1, 0, len(labels), dtype=np.float32)[:, None]
    return [Slate(f"s{n}", "", ["a", "b", "c"][: len(labels)], features, labels, 3) for n in range(4)]


@pytest.mark.parametrize("kind", ["misses", "hits", "empty", "none"])
@pytest.mark.parametrize("wish", ["auto", "always", "never"])
@pytest.mark.parametrize("use", ["training", "validation"])
def test_slates_of_one_class_leave_the_language_model_out_and_nothing_else(tiny, tmp_path, kind, wish, use):
    few, whole, lines = of_one_class(kind), make_slates(20, 1, 0.5), []
    data = (few, whole) if use == "training" else (whole, few)
    report = training.train(*data, settings_of(tiny, wish), ["f"], tmp_path / "v", lines.append, None, pytest.fail)
    assert not report.language_model and len(report.valid_loss) == 1 and np.isfinite(report.valid_loss).all()
    (line,) = [line for line in lines if "left out" in line]
    assert f"({use}: {len(few)} slates with " in line
    predictor = Predictor.load(tmp_path / "v", 1)
    for scores in predictor.score(make_slates(5, 3)):
        assert ((scores > 0) & (scores < 1)).all() and (use == "validation" or len(np.unique(scores)) == 1)
    assert predictor.manifest.prior[0] >= 0 and (use == "training" or predictor.manifest.prior[0] > 0)


def test_a_prior_survives_broken_features(tiny, tmp_path):
    slates = make_slates(20, 1)
    slates[0].features[:] = np.nan
    slates[1].features[:] = np.inf
    training.train(slates, make_slates(5, 2), settings_of(tiny, epochs=1), ["f"], tmp_path / "v", lambda _: None)
    slates[2].features[:] = 1e30
    assert all(np.isfinite(s).all() for s in Predictor.load(tmp_path / "v", 1).score(slates))


def test_no_slate_stops_the_others(trained):
    predictor = Predictor.load(trained[-1], 1)
    good, *others = make_slates(4, 9)
    feature = np.zeros((1, 1), np.float32)
    odd = [
        type(good)("empty", "", [], np.zeros((0, 0), np.float32), None, 0),
        type(good)("silent", "", [""], feature, None, 0),
        type(good)("emoji", "\U0001f600" * 5000, ["\U0001f4a9" * 3000], feature, None, 0),
        type(good)("long", "word " * 10_000, ["word " * 10_000], feature, None, 0),
        type(good)("broken", "\ud800\x00", ["\ud83d"], feature, None, 0),
    ]
    scores = predictor.score([odd[0], good, *odd[1:], *others])
    assert [len(s) for s in scores] == [0, len(good.texts), 1, 1, 1, 1, *(len(s.texts) for s in others)]
    assert all(s.dtype == np.float32 and np.isfinite(s).all() for s in scores)
    assert predictor.score([]) == []
    np.testing.assert_array_equal(scores[1], predictor.score([good])[0])


def test_features_of_another_width_are_refused(trained):
    slate = make_slates(1, 3)[0]
    wide = type(slate)("w", "", ["a"], np.zeros((1, 2), np.float32), None, 0)
    with pytest.raises(ContractError, match="slate w"):
        Predictor.load(trained[-1], 1).score([wide])


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_artefact_is_named(trained, tmp_path, file):
    copy = tmp_path / "v"
    subprocess.run(["cp", "-r", trained[-1], copy], check=True)
    with (copy / file).open("rb+") as stream:
        stream.truncate(100)
    with pytest.raises(ModelError, match=f"{file}: differs"):
        load(copy)
    (copy / file).unlink()
    with pytest.raises(ModelError, match=f"{file}: is missing"):
        load(copy)


def test_an_artefact_without_manifest_or_of_another_format_is_refused(trained, tmp_path):
    with pytest.raises(ModelError, match="manifest"):
        load(tmp_path)
    manifest = json.loads((trained[-1] / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ModelError, match="format 99"):
        load(tmp_path)


def test_the_manifest_says_how_the_model_was_made(trained):
    _, _, manifest = load(trained[-1])
    assert manifest.version == "v1" and manifest.feature_names == ["noise"]
    assert manifest.settings["training"]["freeze"] == "full"
    assert manifest.mean[0] == pytest.approx(np.mean(np.concatenate([s.features for s in make_slates(60, 1, WORST)])))
    assert torch.float32 == next(load(trained[-1], FLOAT32)[0].parameters()).dtype


def test_no_feature_turns_the_order_round_that_a_list_came_in(tiny, tmp_path):
    """Of features that are the greater the better, one against which the labels speak counts for nothing."""
    slates = [
        replace(slate, features=np.stack([slate.labels * 2 - rank, -slate.labels - rank], axis=1).astype(np.float32))
        for slate in make_slates(60, 1, 9.0, ["red"])
        for rank in [np.arange(len(slate.texts))]
    ]
    scorer = settings_of(tiny, "never")
    training.train(slates, slates, scorer, ["helps", "misleads"], tmp_path / "v", lambda _: None)
    weights = checked(tmp_path / "v").prior
    assert weights[0] > 0.5 and weights[1] == 0
