"""The retriever learns from order, text and graph, scores what it has never seen, and survives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse

from lakerec.errors import ContractError, ModelError, NotEnoughDataError
from lakerec.histories import Histories
from lakerec.scorer.retriever import (
    Events,
    ItemSide,
    Retriever,
    RetrieverSettings,
    fit,
    gap_buckets,
)
from lakerec.scorer.retriever_training import (
    by_length,
    full_softmax,
    likelihood,
    sampled_softmax,
    training_windows,
    validation_windows,
)

ITEMS, D_TEXT = 12, 6
SMALL = {
    "block": "transformer",
    "size": 16,
    "layers": 1,
    "heads": 2,
    "window": 8,
    "batch": 8,
    "ema": 0.9,
    "learning_rate": 0.01,
    "dropout": 0.0,
}


def settings_of(**changes):
    return RetrieverSettings(**{**SMALL, "epochs": 3, "patience": 3, **changes})


def make_items(count=ITEMS, graph=False, seed=0):
    text = np.random.default_rng(seed).normal(size=(count, D_TEXT)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    nodes = sparse.csr_matrix(np.eye(count, 4, dtype=np.float32)[np.arange(count) % 4]) if graph else None
    return ItemSide(text, nodes)


def make_histories(people=30, longest=20, seed=1, step=1):
    """Circles through the catalogue: behind item i comes item i + step."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, people)
    users = np.repeat(np.arange(people), lengths)
    places = np.concatenate([np.arange(n) for n in lengths])
    items = (rng.integers(0, ITEMS, people)[users] + step * places) % ITEMS
    return Histories.of_events(users, items, places + rng.random(len(users)) / 2, people, ITEMS)


def nobody(histories):
    return np.zeros(len(histories), dtype=np.int64)


def quiet(_):
    pass


def train(histories, items, settings, **more):
    return fit(histories, np.minimum(1, histories.lengths), items, settings, progress=quiet, **more)


def weights(model):
    return {name: value.cpu().numpy() for name, value in model.state_dict().items()}


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes", [{}, {"block": "hstu"}, {"relative": False}, {"sampled": 8}, {"target_gap": True}], ids=str
)
def test_it_learns_the_order(changes):
    histories, items = make_histories(80), make_items()
    model, report = train(histories, items, settings_of(epochs=25, patience=25, id_dropout=0.0, **changes))
    assert report.valid_loss[-1] < 0.6 < np.log(ITEMS) < report.valid_loss[0] + 0.5
    past = histories.without_last(1)
    scores = model.score(past, items)
    wanted = histories.items[histories.starts[1:] - 1]
    assert (scores.argmax(axis=1) == wanted).mean() > 0.9
    assert scores.dtype == np.float32 and np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)
    own = scores[np.arange(len(wanted)), wanted]
    assert -own.mean() == pytest.approx(report.best_loss, abs=1e-3)


def test_scores_are_user_times_item_plus_bias():
    histories, items = make_histories(), make_items(graph=True)
    model, _ = train(histories, items, settings_of(epochs=1))
    logits = model.user_vectors(histories) @ model.item_vectors(items).T + model.item_biases(items)
    expected = torch.log_softmax(torch.from_numpy(logits), dim=1).numpy()
    assert np.allclose(model.score(histories, items), expected, atol=1e-5)
    assert np.allclose(model.score(histories), expected, atol=1e-5)


@pytest.mark.parametrize("block", ["transformer", "hstu"])
def test_a_score_depends_on_its_own_history_alone(block):
    histories, items = make_histories(), make_items()
    model, _ = train(histories, items, settings_of(epochs=1, block=block))
    together = model.score(histories, items)
    for person in (0, 7):
        assert np.allclose(model.score(histories.select([person]), items)[0], together[person], atol=1e-5)


@pytest.mark.parametrize("block", ["transformer", "hstu"])
def test_no_output_sees_what_comes_behind(block):
    histories, items = make_histories(1, 8), make_items()
    model = Retriever(settings_of(block=block, relative=True), ITEMS, D_TEXT, 0, 1).eval()
    events = Events(histories, None, D_TEXT)
    batch = events.batch(events.last_windows(8), torch.device("cpu"))
    vectors, _ = model.tower(model.side(items))
    before = model(batch, vectors)
    batch.items[:, -1] = (batch.items[:, -1] + 5) % ITEMS
    batch.ages[:, -1] += 1e7
    after = model(batch, vectors)
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])


def test_the_time_of_the_target_is_not_read_by_default():
    histories, items = make_histories(), make_items()
    later = Histories(**{**vars(histories), "at": histories.at + 1000.0})
    model, _ = train(histories, items, settings_of(epochs=1))
    assert np.array_equal(model.score(histories, items), model.score(later, items))
    model, _ = train(histories, items, settings_of(epochs=1, target_gap=True))
    assert not np.array_equal(model.score(histories, items), model.score(later, items))


def test_gaps_in_buckets():
    days = np.array([-1.0, 0.0, 1 / 86400, 3 / 86400, 1.0, 1e6])
    assert gap_buckets(days).tolist() == [1, 1, 2, 3, 17, 31]


def test_a_new_item_is_scored_from_its_text():
    histories = make_histories(80)
    items = make_items()
    model, _ = train(histories, items, settings_of(epochs=20, patience=20, id_dropout=0.5))
    twin = ItemSide(np.concatenate([items.text, items.text[3:4], np.zeros((1, D_TEXT), np.float32)]))
    people = histories.select(np.flatnonzero(histories.items[histories.starts[1:] - 1] == 2))  # next comes 3
    scores = model.score(people, twin)
    assert scores.shape == (len(people), ITEMS + 2) and np.isfinite(scores).all()
    assert (scores[:, ITEMS] > np.median(scores[:, :ITEMS], axis=1)).all()
    assert (scores[:, ITEMS] > scores[:, ITEMS + 1]).all()


def test_a_new_item_in_the_history_is_read():
    histories, items = make_histories(), make_items()
    model, _ = train(histories, items, settings_of(epochs=1))
    more = ItemSide(np.concatenate([items.text, -items.text[:2]]))
    users = np.array([0, 0])
    two = (Histories.of_events(users, np.array([1, new]), np.array([1.0, 2.0]), 1, ITEMS + 2) for new in (12, 13))
    first, second = (model.score(histories, more) for histories in two)
    assert np.isfinite(first).all() and not np.allclose(first, second)
    with pytest.raises(ContractError, match="more items than the 12"):
        model.score(Histories.of_events(users, np.array([1, 12]), np.array([1.0, 2.0]), 1, ITEMS + 2))


def test_items_must_keep_their_places():
    histories, items = make_histories(), make_items()
    model, _ = train(histories, items, settings_of(epochs=1))
    with pytest.raises(ContractError, match="append new items"):
        model.score(histories, ItemSide(items.text[:-1]))


def test_the_graph_is_read():
    """Without ids and text, only the graph tells the items apart: behind node n comes node n + 1."""
    histories, items = make_histories(80), make_items(graph=True)
    blank = ItemSide(np.zeros_like(items.text), items.graph)
    model, _ = train(histories, blank, settings_of(epochs=25, patience=25, id_dropout=0.9))
    vectors = model.item_vectors(ItemSide(np.zeros((ITEMS + 1, D_TEXT), np.float32), _grown(items.graph)))
    ids = model.tower.ids.detach().cpu().numpy()
    assert np.allclose(vectors[ITEMS], (vectors[0] - ids[0] + vectors[1] - ids[1]) / 2, atol=1e-5)


def _grown(graph):
    """One more item in the nodes 0 and 1, and a node that nobody was trained on."""
    row = sparse.csr_matrix(np.array([[1, 1, 0, 0]], dtype=np.float32))
    return sparse.csr_matrix(sparse.hstack([sparse.vstack([graph, row]), np.ones((ITEMS + 1, 1), np.float32)]))


def test_without_events_the_profile_speaks():
    histories, items = make_histories(60), make_items()
    kinds = np.arange(60) % 2
    profile = np.eye(2, D_TEXT, dtype=np.float32)[kinds]
    liked = np.where(kinds[histories.users], 5, 9).astype(np.int32)
    histories = Histories(**{**vars(histories), "items": liked})
    model, _ = train(histories, items, settings_of(epochs=15, patience=15), profile=profile)
    nothing = histories.keep(np.zeros(len(histories.items), dtype=bool)).select([0, 1, 2])
    scores = model.score(nothing, items, np.concatenate([profile[:2], np.zeros((1, D_TEXT), np.float32)]))
    assert scores[0].argmax() == 9 and scores[1].argmax() == 5
    assert np.isfinite(scores[2]).all()


def test_windows_cover_every_event_once():
    lengths = np.array([0, 1, 8, 9, 30])
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    for seed in range(20):
        found = training_windows(starts, lengths, 8, np.random.default_rng(seed))
        assert found.length.max() <= 8 and (found.targets_from < found.targets_to).all()
        targets = [
            np.arange(f + a, f + b) for f, a, b in zip(found.first, found.targets_from, found.targets_to, strict=True)
        ]
        assert sorted(np.concatenate(targets)) == list(range(48))
        assert (found.first + found.length <= (starts + lengths)[found.person]).all()


def test_validation_windows_hold_the_held_out_events():
    lengths, held = np.array([1, 9, 30, 5]), np.array([1, 2, 20, 0])
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    found = validation_windows(starts, lengths, held, 8)
    targets = [
        np.arange(f + a, f + b) for f, a, b in zip(found.first, found.targets_from, found.targets_to, strict=True)
    ]
    assert sorted(np.concatenate(targets)) == [0, 8, 9, *range(20, 40)]
    assert found.length.max() <= 8 and (found.targets_to <= found.length + 1).all()
    seen = found.targets_from[found.person == 2]
    assert (seen >= 4).all()


def test_batches_stay_within_the_budget():
    lengths = np.random.default_rng(0).integers(0, 50, 200)
    batches = list(by_length(lengths, 120))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(places) == 1 or (lengths[places].max() + 1) * len(places) <= 120 for places in batches)


def test_full_softmax_is_cross_entropy(monkeypatch):
    monkeypatch.setattr("lakerec.scorer.retriever_training.CHUNK", 64)
    torch.manual_seed(0)
    f, vectors, bias = torch.randn(21, 4), torch.randn(9, 4), torch.randn(9)
    targets = torch.randint(0, 9, (21,))
    values = [x.clone().requires_grad_() for x in (f, vectors, bias)]
    others = [x.clone().requires_grad_() for x in (f, vectors, bias)]
    loss = full_softmax(*values, targets, torch.float32)
    expected = torch.nn.functional.cross_entropy(others[0] @ others[1].T + others[2], targets)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss, expected)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(values, others, strict=True))
    assert likelihood(f, vectors, bias, targets) == pytest.approx(-21 * expected.item(), rel=1e-5)


def test_sampled_softmax_estimates_the_full_one():
    torch.manual_seed(0)
    f, vectors, bias = torch.randn(50, 4), torch.randn(30, 4), torch.randn(30)
    targets, log_q = torch.randint(0, 30, (50,)), torch.randn(30).log_softmax(dim=0)
    negatives = torch.multinomial(log_q.exp(), 200_000, replacement=True)
    found = sampled_softmax(f, vectors, bias, targets, negatives, log_q)
    assert found.item() == pytest.approx(full_softmax(f, vectors, bias, targets, torch.float32).item(), abs=0.02)


def test_only_events_of_a_weight_count():
    histories, items = make_histories(), make_items()
    noise = np.random.default_rng(3).random(len(histories.items)) < 0.5
    marked = Histories(**{**vars(histories), "weights": np.where(noise, 0, 1).astype(np.float32)})
    one, report = fit(marked, np.full(30, 2), items, settings_of(epochs=1), progress=quiet)
    clean = marked.chosen()
    held = np.bincount(histories.users[~noise & (histories.places < 2)], minlength=30)
    two, expected = fit(clean, held, items, settings_of(epochs=1), progress=quiet)
    assert same(one, two) and report.valid_loss == expected.valid_loss
    assert report.events + report.held == len(clean.items)


def test_types_are_told_apart():
    histories, items = make_histories(), make_items()
    types = (np.arange(len(histories.items)) % 3).astype(np.int16)
    typed = Histories(**{**vars(histories), "types": types})
    model, _ = train(typed, items, settings_of(epochs=2))
    assert not np.allclose(model.score(typed, items), model.score(histories, items))
    assert np.isfinite(model.score(Histories(**{**vars(histories), "types": types + 5}), items)).all()


@pytest.mark.parametrize("changes", [{}, {"sampled": 6, "block": "hstu"}], ids=str)
def test_the_same_seed_gives_the_same_weights(changes):
    histories, items = make_histories(), make_items(graph=True)
    made = [train(histories, items, settings_of(dropout=0.2, **changes)) for _ in range(2)]
    assert same(made[0][0], made[1][0]) and made[0][1].valid_loss == made[1][1].valid_loss
    other, _ = train(histories, items, settings_of(dropout=0.2, seed=18, **changes))
    assert not same(made[0][0], other)


def test_the_random_state_of_the_caller_stays():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(make_histories(), make_items(), settings_of(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_patience_ends_a_training_and_the_best_is_kept():
    histories, items = make_histories(), make_items()
    model, report = train(histories, items, settings_of(epochs=30, patience=2, learning_rate=0.3, ema=0.0))
    assert len(report.valid_loss) < 30 and report.best_epoch == len(report.valid_loss) - 2
    assert report.best_loss == report.valid_loss[report.best_epoch - 1]
    scores = model.score(histories.without_last(1), items)
    wanted = histories.items[histories.starts[1:] - 1]
    assert -scores[np.arange(30), wanted].mean() == pytest.approx(report.best_loss, abs=1e-3)


def test_a_budget_ends_a_training():
    _, report = train(make_histories(), make_items(), settings_of(epochs=30, patience=30, max_minutes=1e-9))
    assert len(report.train_loss) == 1


def test_a_refit_trains_exactly_so_many_epochs():
    histories, items = make_histories(), make_items()
    _, report = fit(histories, nobody(histories), items, settings_of(), epochs=2, progress=quiet)
    assert len(report.train_loss) == 2 and not report.valid_loss and report.best_epoch == 2
    assert report.events == len(histories.items)


def test_without_held_out_events_epochs_are_needed():
    histories, items = make_histories(), make_items()
    with pytest.raises(NotEnoughDataError, match="how many epochs"):
        fit(histories, nobody(histories), items, settings_of(), progress=quiet)
    with pytest.raises(NotEnoughDataError, match="no events"):
        fit(histories, histories.lengths, items, settings_of(), progress=quiet)


def test_a_warm_start_begins_where_the_last_ended():
    histories, items = make_histories(80), make_items(graph=True)
    model, report = train(histories, items, settings_of(epochs=15, patience=15))
    more = ItemSide(make_items(ITEMS + 2).text, sparse.vstack([items.graph, items.graph[:2]]).tocsr())
    more.text[:ITEMS] = items.text
    wider = Histories(**{**vars(histories), "n_items": ITEMS + 2})
    _, cold = train(wider, more, settings_of(epochs=1))
    warm, again = train(wider, more, settings_of(epochs=1), warm=model)
    assert again.valid_loss[0] < report.best_loss + 0.5 < cold.valid_loss[0]
    assert warm.score(wider, more).shape == (80, ITEMS + 2)


def test_one_item_one_person():
    users, items = np.zeros(4, dtype=int), np.zeros(4, dtype=int)
    histories = Histories.of_events(users, items, np.arange(4.0), 1, 1)
    side = ItemSide(np.zeros((1, D_TEXT), dtype=np.float32))
    model, report = train(histories, side, settings_of(epochs=2))
    assert model.score(histories, side).tolist() == [[0.0]] and report.best_loss == pytest.approx(0.0, abs=1e-6)


def test_items_without_text():
    histories, items = make_histories(), make_items()
    items.text[::2] = 0
    model, _ = train(histories, items, settings_of())
    assert np.isfinite(model.score(histories, items)).all()


def test_people_without_events():
    histories = make_histories()
    some = histories.keep(histories.users % 3 > 0)
    model, _ = train(some, make_items(), settings_of(epochs=2))
    scores = model.score(some)
    assert np.isfinite(scores).all() and np.array_equal(scores[0], scores[3])
    nobody_there = some.select([])
    assert model.score(nobody_there).shape == (0, ITEMS)


def test_a_saved_retriever_scores_the_same(tmp_path):
    histories, items = make_histories(), make_items(graph=True)
    model, _ = train(histories, items, settings_of(block="hstu"))
    model.save(tmp_path / "r")
    model.save(tmp_path / "r")
    again = Retriever.load(tmp_path / "r")
    assert again.settings == model.settings and same(again, model)
    assert np.array_equal(again.score(histories, items), model.score(histories, items))
    assert sorted(file.name for file in (tmp_path / "r").iterdir()) == ["retriever.json", "retriever.safetensors"]
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_retriever_is_not_loaded(tmp_path):
    with pytest.raises(ModelError, match="not a retriever"):
        Retriever.load(tmp_path / "none")
    model, _ = train(make_histories(), make_items(), settings_of(epochs=1))
    model.save(tmp_path / "r")
    (tmp_path / "r" / "retriever.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="train again"):
        Retriever.load(tmp_path / "r")


def fit_again(checkpoint, epochs=8, pause=0.0):
    """What the killed process, which pauses before each checkpoint, and the one after it train."""
    settings = settings_of(epochs=epochs, patience=epochs, dropout=0.2, window=6)
    histories, lines = make_histories(60), []

    def progress(line):
        lines.append(line)
        time.sleep(pause)

    held = np.minimum(1, histories.lengths)
    model, report = fit(histories, held, make_items(graph=True), settings, checkpoint, progress=progress)
    return model, report, lines


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_retriever as t
t.torch.set_num_threads({threads})
t.fit_again(Path({out!r}), pause=0.5)
"""


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(checkpoint), threads=torch.get_num_threads())
    child = subprocess.Popen([sys.executable, "-c", script])
    until = time.monotonic() + 60
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    killed = child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert killed and checkpoint.exists()
    model, report, lines = fit_again(checkpoint)
    assert lines[0].startswith("resumed after epoch") and len(lines) < 9
    whole, expected, _ = fit_again(None)
    assert report.valid_loss == expected.valid_loss and same(model, whole)


def test_a_foreign_or_broken_checkpoint_is_not_resumed(tmp_path):
    checkpoint = tmp_path / "c"
    fit_again(checkpoint, epochs=1)
    _, _, lines = fit_again(checkpoint, epochs=2)
    assert "of another training" in lines[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    _, report, lines = fit_again(checkpoint, epochs=2)
    assert "cannot be read" in lines[0] and len(report.train_loss) == 2
    save_file({"a": torch.zeros(1)}, checkpoint)  # another program's: it tells nothing of itself
    _, report, lines = fit_again(checkpoint, epochs=2)
    assert "of another training" in lines[0] and len(report.train_loss) == 2
    _, again, lines = fit_again(checkpoint, epochs=2)
    assert lines == [f"resumed after epoch 2 from {checkpoint}"] and again.valid_loss == report.valid_loss
