"""Histories and candidates as item vectors: a token each, in training, in the artefact and in the nightly lists."""

from dataclasses import replace

import nights
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import COLOURS, logits, make_slates
from lakerec.config import Scorer, Training
from lakerec.errors import ContractError
from lakerec.histories import Histories
from lakerec.scorer import training
from lakerec.scorer.item_reader import AGES
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.model import SlateScorer, check_blocks
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.serving_day import ScoringDay
from lakerec.scorer.slates import CANDIDATE, VECTORS, Form, Packer, Past, Picked, Slate

WIDTH = 6
FORMS = [(VECTORS, "text"), ("text", VECTORS), (VECTORS, VECTORS)]
WORST = 10.0  # noise that leaves the feature worthless


def build(place, history, candidate):
    encoder, tokenizer = load_encoder(place)
    torch.manual_seed(1)
    model = SlateScorer(encoder, np.zeros(1, np.float32), np.ones(1, np.float32), torch.float32, WIDTH)
    for weight in (model.head[-1].weight, model.items.kinds.weight, model.items.ages.weight):
        torch.nn.init.normal_(weight)
    return model.eval(), Packer(tokenizer, 20, 8, history, candidate)


@pytest.fixture(scope="module", params=["bert", "llama"])
def readers(models, request):
    return {form: build(models[request.param], *form) for form in FORMS}


def slate(seed, events, candidates):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(events + candidates, WIDTH)).astype(np.float32)
    past = Past(Picked(table, np.arange(events)), rng.integers(0, 3, events), rng.exponential(30, events))
    texts = [str(word) for word in rng.choice(["tea", "red train", "kettle"], candidates)]
    vectors = Picked(table, events + np.arange(candidates))
    return Slate("s", "bought tea", texts, np.zeros((candidates, 1), np.float32), None, 0, past, vectors)


def one(whole, place):
    return replace(
        whole,
        texts=[whole.texts[place]],
        vectors=whole.vectors.slice(place, place + 1),
        features=whole.features[[place]],
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(0, 30), st.integers(1, 6), st.integers(1, 4))
def test_a_slate_in_one_pass_equals_each_candidate_alone(readers, form, seed, events, candidates, more):
    model, packer = readers[form]
    check_blocks(model, packer, "tiny")
    pair = [slate(seed, events, candidates), slate(seed + 1, 3, more)]
    alone = [logits(model, packer.pack([one(each, n)]))[0] for each in pair for n in range(len(each.texts))]
    np.testing.assert_allclose(logits(model, packer.pack(pair)), alone, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_slate_cut_in_pieces_reads_the_same(readers, form):
    model, packer = readers[form]
    whole = slate(5, 12, 30)
    short = Packer.of(packer.tokenizer, packer.form)
    short.longest = 32
    packs = short.pack([whole])
    assert len(packs) > 1
    np.testing.assert_allclose(logits(model, packs), logits(model, packer.pack([whole])), atol=1e-4)


def test_an_event_and_a_candidate_are_a_token_each_and_the_latest_events_are_kept(readers):
    _, packer = readers[VECTORS, VECTORS]
    whole = slate(1, 30, 3)
    (pack,) = packer.pack([whole])
    begins = len(packer.begin)
    assert len(pack) == begins + 20 + 1 + 3 * 2
    assert pack.given.places.tolist() == [*range(begins, begins + 20), *(begins + 21 + 2 * n for n in range(3))]
    found = np.concatenate([picked.rows for picked in pack.given.vectors])
    np.testing.assert_array_equal(found, np.concatenate([whole.past.vectors.rows[-20:], whole.vectors.rows]))
    assert pack.given.kinds.tolist() == [*(whole.past.kinds[-20:] + 1), *[CANDIDATE] * 3]
    assert np.isnan(pack.given.ages[-3:]).all() and (pack.given.ages[:20] == whole.past.ages[-20:]).all()


def test_type_age_and_item_of_an_event_are_read(readers):
    model, packer = readers[VECTORS, "text"]
    whole = slate(2, 3, 2)
    before = logits(model, packer.pack([whole]))
    past = whole.past
    for other in (
        replace(past, kinds=past.kinds + 1),
        replace(past, ages=past.ages + 900),
        replace(past, vectors=Picked(-past.vectors.table, past.vectors.places)),
        replace(past, vectors=Picked(past.vectors.table, past.vectors.places[::-1])),
    ):
        assert np.abs(logits(model, packer.pack([replace(whole, past=other)])) - before).max() > 1e-3


def test_ages_fall_into_classes_and_the_oldest_is_not_none(readers):
    model, packer = readers[VECTORS, "text"]
    past = Past(
        Picked(np.ones((4, WIDTH), np.float32), np.arange(4)), np.zeros(4, np.int64), np.array([-1.0, 0.0, 1e9, np.nan])
    )
    batch = model.collate(packer.pack([replace(slate(1, 0, 1), past=past)]))
    assert batch.items.ages.tolist() == [0, 0, AGES - 2, AGES - 1]


def test_the_past_of_a_person():
    known = Histories.of_events(
        np.array([0, 1, 1, 1]),
        np.array([2, 0, 1, 2]),
        np.array([1.0, 2, 3, 5]),
        2,
        3,
        None,
        np.array([0, 1, 0, 2]),
        7.0,
    )
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    past = Past.of(known, 1, vectors, 2)
    assert (
        past.vectors.rows.tolist() == [[2, 3], [4, 5]]
        and past.kinds.tolist() == [0, 2]
        and past.ages.tolist() == [4, 2]
    )
    assert Form(2, 3, VECTORS).told(known, 0, np.array([1]), vectors)["vectors"] is None
    assert Form(2, 3, "text", VECTORS).told(known, 0, np.array([1]), vectors)["vectors"].rows.tolist() == [[2, 3]]
    assert Form.of({"history_tokens": 2, "candidate_tokens": 3, "freeze": "lora"}) == Form(2, 3)


# --- training -------------------------------------------------------------------------------------------------


def coloured(count, seed, words=False):
    """Slates whose vectors tell the colour; their texts do not, unless they are to have their words."""
    made = []
    for each in make_slates(count, seed, WORST, ["red"] if words else ["red", "blue"]):
        told = np.eye(len(COLOURS), dtype=np.float32)
        liked = [COLOURS.index(word.split()[1]) for word in each.history.split(", ")]
        shown = [COLOURS.index(text.split()[0]) for text in each.texts]
        past = Past(Picked(told, np.array(liked)), np.zeros(len(liked), np.int64), np.ones(len(liked)))
        known = {} if words else {"history": "", "texts": ["x"] * len(shown)}
        made.append(replace(each, past=past, vectors=Picked(told, np.array(shown)), **known))
    return made


def settings_of(tiny, **changes):
    values = {"freeze": "full", "epochs": 6, "learning_rate": 2e-3, "patience": 3, "token_budget": 256}
    sizes = {"history_tokens": 32, "candidate_tokens": 4, "history": VECTORS, "candidate": VECTORS}
    told = {"training": Training(**values), **sizes, **changes}
    return Scorer(model=str(tiny), language_model="always", **told)


def test_a_language_model_learns_to_read_vectors_and_its_artefact_does(tiny, tmp_path):
    train, valid = coloured(300, 1), coloured(60, 2)
    report = training.train(train, valid, settings_of(tiny), ["noise"], tmp_path / "v", lambda _: None)
    assert report.best_loss < report.prior_loss / 2
    scores, labels = (
        np.concatenate(Predictor.load(tmp_path / "v", 1).score(valid)),
        np.concatenate([each.labels for each in valid]),
    )
    loss = -np.mean(np.log(np.where(labels > 0, scores, 1 - scores)))
    assert loss == pytest.approx(report.best_loss, abs=5e-3)


def test_a_student_that_reads_vectors_learns_from_a_teacher_that_reads_words(tiny, tmp_path):
    train, valid = (coloured(count, seed, words=True) for count, seed in ((200, 1), (50, 2)))
    words = settings_of(tiny, history="text", candidate="text")
    training.train(train, valid, words, ["noise"], tmp_path / "teacher", lambda _: None)
    told = words.training.model_copy(update={"loss": "distill", "teacher": "teacher", "distill_weight": 1.0})
    student = settings_of(tiny, training=told)
    report = training.train(train, valid, student, ["noise"], tmp_path / "student", lambda _: None)
    assert report.valid_ndcg[report.best_epoch] > report.valid_ndcg[0] + 0.1
    taught, learned = (Predictor.load(tmp_path / name, 1) for name in ("teacher", "student"))
    lengths = [sum(len(pack) for pack in each.packer.pack(valid)) for each in (taught, learned)]
    assert lengths[1] < lengths[0]
    agree = [np.argmax(a) == np.argmax(b) for a, b in zip(taught.score(valid), learned.score(valid), strict=True)]
    assert np.mean(agree) > 0.65


def test_slates_without_the_vectors_that_are_to_be_read_are_refused(tiny, tmp_path):
    bare = [replace(each, past=None, vectors=None) for each in coloured(10, 1)]
    with pytest.raises(ContractError, match="item vectors"):
        training.train(bare, bare, settings_of(tiny), ["noise"], tmp_path / "v", lambda _: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("freeze", ["head", "head+full"])
def test_a_frozen_language_model_is_not_told_vectors(freeze):
    with pytest.raises(ValidationError, match="lora or full"):
        Scorer(history=VECTORS, training=Training(freeze=freeze))


@pytest.mark.parametrize("form", FORMS)
def test_a_night_reads_vectors_from_the_training_to_the_lists(tiny, tmp_path, form):
    history, candidate = form
    config = nights.make_config(tiny, retriever={"enabled": False})
    told = {"history": history, "candidate": candidate, "language_model": "always"}
    train = config.scorer.training.model_copy(update={"freeze": "full"})
    scorer = config.scorer.model_copy(update={**told, "training": train})
    nights.run(tmp_path / "v1", config.model_copy(update={"scorer": scorer}))
    nights.shelf_of(nights.make_world()).save(tmp_path / "day.npz")
    predictor = Predictor.load(tmp_path / "v1", 1)
    assert predictor.packer.form == Form(24, 6, *form)
    day = ScoringDay.load(tmp_path / "v1", tmp_path / "day.npz")
    lists = day.lists(nights.readings_of(nights.make_events()), predictor, 5)
    assert lists["user_id"].nunique() == len(nights.PEOPLE) + 1
    assert lists["score"].between(0, 1).all() and lists["score"].nunique() > len(nights.PEOPLE)
