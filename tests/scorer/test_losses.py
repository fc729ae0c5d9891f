"""Losses over slates: against plain numpy, over whole slates however they are packed, and what they leave behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from test_training import WORST, by_hand, settings_of

from conftest import make_slates
from lakerec import metrics
from lakerec.config import Training
from lakerec.errors import ContractError, ModelError
from lakerec.scorer import artefact, language_model, losses, training
from lakerec.scorer.artefact import checked, sha256
from lakerec.scorer.checkpoints import copied
from lakerec.scorer.fitting import Run, TrainingReport
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.losses import Objective, teacher_logits
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.prior import fit_prior, moments, rescale
from lakerec.scorer.reading import CachedReading, Examples, Reading
from lakerec.scorer.slates import Packer

SIZES = [3, 1, 4]
LABELS = np.array([1, 0, 1, 0, 0, 0, 1, 0], dtype=np.float32)  # the second slate has no positive
GIVEN = np.array([0.3, -1.2, 2.0, 0.5, 1.0, -0.4, 0.1, 3.0])
TAUGHT = np.array([1.0, 0.0, -1.0, 7.0, 0.2, 0.4, 2.0, -3.0], dtype=np.float32)


def examples_of(teacher=None):
    starts, features = np.cumsum([0, *SIZES]), torch.zeros(len(LABELS), 1)
    return Examples([], features, torch.from_numpy(LABELS), starts, [2, 0, 1], teacher)


def parts(values):
    return np.split(np.asarray(values, dtype=np.float64), np.cumsum(SIZES)[:-1])


def softmax_by_hand():
    pairs = zip(parts(GIVEN), parts(LABELS), strict=True)
    return sum(-(y / y.sum()) @ log_softmax(z) for z, y in pairs if y.any())


def distance_by_hand(heat):
    pairs = zip(parts(GIVEN), parts(TAUGHT), strict=True)
    return heat**2 * sum(softmax(t / heat) @ (log_softmax(t / heat) - log_softmax(z / heat)) for z, t in pairs)


def of(loss, rows=None, **changes):
    objective = Objective(Training(loss=loss, **changes), examples_of(torch.from_numpy(TAUGHT)))
    rows = np.arange(len(LABELS)) if rows is None else rows
    z = torch.from_numpy(GIVEN)[rows].requires_grad_()
    total = objective.total(z, rows)
    total.backward()
    return float(total.detach()), objective.counts, z.grad.numpy()


def test_softmax_is_the_cross_entropy_of_each_slate_with_a_positive():
    total, counts, slope = of("softmax")
    assert total == pytest.approx(softmax_by_hand(), rel=1e-6)
    assert counts.tolist() == [1, 0, 0, 0, 1, 0, 0, 0] and slope[3] == 0
    first = softmax(GIVEN[:3]) - LABELS[:3] / 2  # two positives share the mass
    np.testing.assert_allclose(slope[:3], first, atol=1e-6)


@pytest.mark.parametrize("heat", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distill_mixes_labels_and_the_distance_to_the_teacher(heat, weight):
    total, counts, _ = of("distill", distill_weight=weight, distill_temperature=heat)
    assert total == pytest.approx((1 - weight) * softmax_by_hand() + weight * distance_by_hand(heat), rel=1e-5)
    assert counts.sum() == len(SIZES)


def test_a_pupil_that_is_its_teacher_has_nothing_to_learn():
    objective = Objective(Training(loss="distill", distill_weight=1.0), examples_of(torch.from_numpy(TAUGHT)))
    z = (torch.from_numpy(TAUGHT) + 3.0).requires_grad_()
    total = objective.total(z, np.arange(len(LABELS)))
    total.backward()
    assert float(total.detach()) == pytest.approx(0, abs=1e-5) and float(z.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("loss", ["bce", "softmax", "distill"])
def test_a_loss_is_a_sum_over_slates_in_any_order(loss):
    whole = of(loss)[0]
    shuffled = of(loss, np.array([4, 5, 6, 7, 0, 1, 2, 3]))[0]
    pieces = [of(loss, rows)[0] for rows in (np.arange(3), np.arange(3, 4), np.arange(4, 8))]
    assert whole == pytest.approx(shuffled, rel=1e-6) == pytest.approx(sum(pieces), rel=1e-6)


@pytest.fixture
def exact(monkeypatch):
    """float32, so that a batch's shape rounds nothing that counts."""
    monkeypatch.setattr(artefact, "precision", lambda _: torch.float32)


def ready(tiny, slates, longest=None):
    """An untrained scorer and examples, packed at most `longest` tokens a sequence."""
    encoder, tokenizer = load_encoder(tiny)
    packer = Packer(tokenizer, 32, 4)
    packer.longest = longest or packer.longest
    examples = Examples.of(slates, packer, 1)
    torch.manual_seed(1)
    model = artefact.build(encoder, *moments(examples.features))
    fit_prior(model, examples)
    torch.nn.init.normal_(model.head[-1].weight, std=0.1)
    return model, examples


def with_empty(slates):
    empty = replace(slates[0], texts=[], features=np.zeros((0, 1), np.float32), labels=np.zeros(0, np.float32))
    return [empty, *slates[:5], empty, empty, *slates[5:], empty]


def test_a_slate_in_several_packs_stays_in_one_step(tiny, exact):
    slates = with_empty(make_slates(20, 1))
    model, examples = ready(tiny, slates, 30)
    reading = Reading(model, examples, 150, whole=True)
    assert len(reading.starts) == 20 < len(examples.packs)
    steps = reading.in_order()
    assert len(steps) > 3 and sorted(np.concatenate(steps)) == list(range(20))
    area = [reading.longest[step].max() * reading.packs[step].sum() for step in steps]
    assert all(found <= 150 or len(step) == 1 for found, step in zip(area, steps, strict=True))
    owner = np.repeat(np.arange(len(slates)), np.diff(examples.starts))
    for step in steps:
        rows = reading.rows(step)
        assert all(np.isin(np.flatnonzero(owner == slate), rows).all() for slate in np.unique(owner[rows]))


@pytest.mark.parametrize("kind", [Reading, CachedReading])
@pytest.mark.parametrize("whole", [True, False])
def test_how_slates_are_packed_changes_no_logit(tiny, exact, kind, whole):
    found = []
    for longest in (30, None):
        model, examples = ready(tiny, with_empty(make_slates(20, 1)), longest)
        reading = kind(model, examples, 150, whole)
        logits = torch.full((len(examples.labels),), torch.nan)
        with torch.no_grad():
            for step in reading.in_order():
                values, rows = reading.logits(step)
                logits[rows] = values.cpu()
        found.append(logits)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def run_of(tiny, slates, longest=None, **changes):
    model, examples = ready(tiny, slates, longest)
    settings = settings_of(tiny, **changes).training
    training.apply_freeze(model, settings)
    examples = replace(examples, teacher=examples.features[:, 0])
    return Run(model, examples, examples, settings, TrainingReport("m", len(slates), len(examples.labels)), print)


@pytest.mark.parametrize("loss", ["bce", "softmax", "distill"])
@pytest.mark.parametrize("freeze", ["head", "full"])
def test_accumulated_steps_have_the_gradients_of_their_union(tiny, exact, loss, freeze):
    run = run_of(tiny, make_slates(12, 1), loss=loss, freeze=freeze)
    order = np.arange(len(run.reading.starts))
    total, count = run.gradients([order])
    whole = {name: weight.grad.clone() for name, weight in run.weights.items()}
    assert max(float(slope.abs().max()) for slope in whole.values()) > 1e-3
    summed, counted = run.gradients([order[:1], order[1:3], order[3:]])
    assert (summed, counted) == (pytest.approx(total, rel=1e-5), count)
    for name, weight in run.weights.items():
        torch.testing.assert_close(weight.grad, whole[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", ["softmax", "distill"])
@pytest.mark.parametrize("freeze", ["head", "full"])
def test_a_slate_in_several_packs_teaches_what_it_teaches_in_one(tiny, exact, loss, freeze):
    found = []
    for longest in (30, None):
        run = run_of(tiny, with_empty(make_slates(12, 1)), longest, loss=loss, freeze=freeze, token_budget=64)
        assert (len(run.reading.examples.packs) > 12) == (longest is not None)
        told = run.gradients(run.reading.in_order())
        found.append((told, {name: weight.grad for name, weight in run.weights.items()}))
    (one, slopes), (two, others) = found
    assert one == pytest.approx(two, rel=1e-4)
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, others[name], atol=1e-5, rtol=1e-3, msg=name)


def test_steps_are_clipped_after_they_are_accumulated(tiny, exact, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: norms.append(clip(*given)))
    run = run_of(tiny, make_slates(12, 1), loss="bce", accumulate=3, token_budget=64, epochs=1)
    steps = len(run.reading.in_order())
    run._train(0)
    assert steps > 3 and abs(len(norms) - -(-steps // 3)) <= 1


def told(seed, count):
    return make_slates(count, seed, WORST, ["red"])


def fit(tiny, out, progress=lambda _: None, **changes):
    data = told(1, 200), told(2, 60)
    scorer = settings_of(tiny, **{"epochs": 4, "token_budget": 256, **changes})
    return training.train(*data, scorer, ["noise"], out, progress), data


def ndcg_of(values, slates):
    labels, targets = [slate.labels for slate in slates], [slate.targets for slate in slates]
    return np.nanmean(metrics.evaluate(values, labels, targets, [10])["ndcg@10"])


@pytest.mark.parametrize("loss", ["softmax", "distill"])
@pytest.mark.parametrize("freeze", ["head", "full"])
def test_a_loss_over_slates_orders_well_and_leaves_probabilities(tiny, tmp_path, loss, freeze):
    report, (_, valid) = fit(tiny, tmp_path / "v", loss=loss, freeze=freeze, learning_rate=4e-3, distill_weight=0.1)
    predictor, fresh = Predictor.load(tmp_path / "v", 1), told(3, 200)
    labels, scores = np.concatenate([slate.labels for slate in fresh]), predictor.score(fresh)
    base = metrics.log_loss(np.full(len(labels), labels.mean()), labels).mean()
    assert metrics.log_loss(np.concatenate(scores), labels).mean() < base - 0.02
    assert np.concatenate(scores).mean() == pytest.approx(labels.mean(), abs=0.06)
    assert report.best_epoch > 0 and ndcg_of(scores, fresh) > ndcg_of(predictor.prior(fresh), fresh) + 0.05
    # float32 probabilities of this toy end at 1: the logits tell the order.
    assert ndcg_of(predictor.logits(valid), valid) == pytest.approx(report.valid_ndcg[report.best_epoch], abs=5e-3)
    assert (report.scale, report.shift) != (1.0, 0.0)


def calibrated(seed, scale, shift):
    """Logits whose log odds are `scale` times them plus `shift`, and their labels, (5000,)."""
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(5000, generator=generator) + 40
    return z, torch.bernoulli(torch.sigmoid(scale * z + shift), generator=generator)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -42.0), (0.2, -9.0), (3.0, -125.0)])
def test_rescaling_finds_the_log_odds_and_moves_the_weights_by_them(tiny, scale, shift):
    model, examples = ready(tiny, make_slates(8, 1))
    packs, features = examples.packs, examples.features.to(model.mean.device)
    with torch.no_grad():
        before = model(model.collate(packs), features)
        found = rescale(model, *calibrated(1, scale, shift))
        after = model(model.collate(packs), features)
    z, _ = calibrated(1, scale, shift)
    gap = torch.sigmoid(found[0] * z + found[1]) - torch.sigmoid(scale * z + shift)
    assert float(gap.abs().max()) < 0.05
    torch.testing.assert_close(after, found[0] * before + found[1], atol=1e-3, rtol=1e-4)


def test_logits_that_separate_the_classes_have_a_finite_scale(tiny):
    model, _ = ready(tiny, make_slates(8, 1))
    labels = torch.tensor([1.0, 0.0, 0.0] * 50)
    scale, shift = rescale(model, 50 * labels - 10, labels)
    assert 3 < scale * 40 + shift < 6 and -6 < -scale * 10 + shift < -3
    worthless = rescale(model, torch.zeros(150), labels)
    assert np.isfinite(worthless).all()


def test_the_features_alone_stay_probabilities_beside_a_loss_over_slates(tiny, tmp_path):
    _, (train, _) = fit(tiny, tmp_path / "v", loss="softmax", learning_rate=4e-3)
    predictor = Predictor.load(tmp_path / "v", 1)
    manifest = checked(tmp_path / "v")
    assert manifest.alone and manifest.alone != manifest.prior
    slates = told(3, 20)
    for prior, slate in zip(predictor.prior(slates), slates, strict=True):
        assert np.allclose(prior, by_hand(replace(manifest, prior=manifest.alone), slate), atol=1e-6)
    rates = np.concatenate([slate.labels for slate in train]).mean()
    assert np.concatenate(predictor.prior(train)).mean() == pytest.approx(rates, abs=1e-3)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_what_does_not_pay_leaves_the_prior_as_it_was_fitted(tiny, tmp_path, loss):
    weights = []
    for name, wish, pays in (("a", "auto", lambda _: False), ("b", "never", None)):
        scorer = settings_of(tiny, wish, loss=loss, epochs=2, token_budget=256, learning_rate=4e-3)
        training.train(told(1, 80), told(2, 40), scorer, ["noise"], tmp_path / name, lambda _: None, None, pays)
        manifest = checked(tmp_path / name)
        weights.append(manifest.prior)
        assert not manifest.language_model and manifest.alone == []
    assert weights[0] == weights[1]


def test_nothing_is_read_where_nothing_is_trained_and_the_start_is_told_all_the_same(tiny, tmp_path, monkeypatch):
    reports = {}
    for wish in ("always", "never"):
        scorer = settings_of(tiny, wish, freeze="head", epochs=1, token_budget=256)
        if wish == "never":
            monkeypatch.setattr(Reading, "read", None)
        reports[wish] = training.train(told(1, 80), told(2, 40), scorer, ["noise"], tmp_path / wish, lambda _: None)
    assert reports["never"].valid_loss == [pytest.approx(reports["always"].prior_loss)] and not reports["never"].tokens


def test_the_same_slates_give_the_same_files(tiny, tmp_path):
    for name in ("a", "b"):
        changes = {"loss": "distill", "accumulate": 2, "stop": "ndcg", "epochs": 1}
        fit(tiny, tmp_path / name / "v", **changes)
    for file in ("model.safetensors", "head.safetensors", "manifest.json"):
        assert sha256(tmp_path / "a" / "v" / file) == sha256(tmp_path / "b" / "v" / file), file


@pytest.mark.parametrize("stop", ["loss", "ndcg"])
def test_the_curve_that_stops_is_the_one_named(tiny, tmp_path, stop):
    report, _ = fit(tiny, tmp_path / "v", stop=stop, patience=9, learning_rate=4e-3)
    assert len(report.valid_loss) == len(report.valid_ndcg) == 5
    best = {"loss": np.argmin(report.valid_loss), "ndcg": np.argmax(report.valid_ndcg)}
    assert report.best_epoch == best[stop] and report.best_loss == report.valid_loss[report.best_epoch]


def test_a_diverged_epoch_is_not_the_best(tiny):
    run = run_of(tiny, make_slates(8, 1))
    run.begin()
    with torch.no_grad():
        run.model.head[-1].bias.fill_(torch.nan)
    run._validate(run.read_held_out())
    assert np.isnan(run.report.valid_loss[1]) and np.isnan(run.report.valid_ndcg[1]) and not run._better(1)


def test_the_rankers_score_teaches_and_what_is_broken_counts_as_its_mean(tiny):
    slates = make_slates(6, 1)
    slates[0].features[0] = np.nan
    model, examples = ready(tiny, slates)
    for name in ("ranker", "retriever"):
        found = teacher_logits(name, tiny, model, slates, examples.features)
        assert found[0] == pytest.approx(float(model.mean[0]), abs=1e-6)
        torch.testing.assert_close(found[1:], examples.features[1:, 0], atol=1e-5, rtol=1e-5)


def test_another_artefact_teaches_by_its_folder_or_its_version(tiny, tmp_path):
    fit(tiny, tmp_path / "large", epochs=3, learning_rate=4e-3)
    slates = told(1, 30)
    model, examples = ready(tiny, slates)
    expected = np.concatenate(Predictor.load(tmp_path / "large", 1).logits(slates))
    for name in ("large", str(tmp_path / "large")):
        found = teacher_logits(name, tmp_path, model, slates, examples.features)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    report, _ = fit(tiny, tmp_path / "small", loss="distill", teacher="large", distill_weight=1.0, learning_rate=4e-3)
    assert report.best_epoch > 0 and report.best_loss < report.prior_loss / 2


def test_a_teacher_that_cannot_be_asked_is_named(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"teacher 'nobody'.*nor a version in"):
        fit(tiny, tmp_path / "v", loss="distill", teacher="nobody")
    fit(tiny, tmp_path / "mute", language_model="never")
    with pytest.raises(ModelError, match=r"teacher .*mute.*no language model"):
        fit(tiny, tmp_path / "v", loss="distill", teacher="mute")
    wide = [replace(s, features=np.repeat(s.features, 2, axis=1)) for s in told(1, 20)]
    fit(tiny, tmp_path / "one", epochs=1)
    scorer = settings_of(tiny, loss="distill", teacher="one")
    with pytest.raises(ContractError, match="other features"):
        training.train(wide, wide, scorer, ["a", "b"], tmp_path / "v", lambda _: None)


def test_a_teacher_that_no_epoch_has_made_better_than_the_ranker_is_refused(tiny, tmp_path, monkeypatch):
    fit(tiny, tmp_path / "one", epochs=1)

    def as_it_began(place):
        network, *others = artefact.load(place)
        torch.nn.init.zeros_(network.head[-1].weight)
        return network, *others

    monkeypatch.setattr(losses, "load", as_it_began)
    with pytest.raises(ModelError, match=r"teacher 'one'.*adds nothing to any candidate.*name `ranker`"):
        fit(tiny, tmp_path / "v", loss="distill", teacher="one")


def test_without_a_language_model_no_teacher_is_asked(tiny, tmp_path):
    report, _ = fit(tiny, tmp_path / "v", loss="distill", teacher="nobody", language_model="never")
    assert len(report.valid_loss) == 1 and not report.train_loss


def test_the_first_line_tells_where_a_training_starts(tiny, tmp_path):
    lines = []
    _, (train, _) = fit(tiny, tmp_path / "v", lines.append, epochs=1)
    rate = np.concatenate([slate.labels for slate in train]).mean()
    base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert lines[0].startswith("200 slates") and f"base rate {base:.4f}" in lines[0]
    assert "features alone 0." in lines[0] and "start (g = 0) 0." in lines[0]
    assert any("200 slates seen" in line for line in lines)


def test_a_start_below_the_base_rate_is_refused(tiny, tmp_path, monkeypatch):
    def broken(model, examples):
        fit_prior(model, examples)
        with torch.no_grad():
            model.prior.bias.add_(3.0)

    monkeypatch.setattr(training, "fit_prior", broken)
    with pytest.raises(ModelError, match="worse than the base rate"):
        fit(tiny, tmp_path / "v", epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("modern", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch, modern, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: modern or including_emulation)
    assert language_model.precision.__wrapped__("cuda") == expected


def test_gradients_of_fp16_are_scaled_and_a_kill_loses_no_scale(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "precision", lambda _: torch.float16)
    run = run_of(tiny, told(1, 60), epochs=2, token_budget=256)
    assert run.scaler.is_enabled()
    run.begin()
    run.best = copied(run.weights)
    run.scaler._growth_interval = 3
    run._epoch()
    assert run.report.valid_loss[1] < run.report.prior_loss and run.scaler.get_scale() > 1024
    run._save(tmp_path / "c", "mark")
    again = run_of(tiny, told(1, 60), epochs=2, token_budget=256)
    assert again._resume(tmp_path / "c", "mark") and again.scaler.get_scale() == run.scaler.get_scale()
    for name, weight in run.weights.items():
        assert torch.equal(weight, again.weights[name])
