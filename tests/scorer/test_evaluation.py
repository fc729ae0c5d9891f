"""What is broken has no figures, and stops no evaluation: the gate refuses it."""

import numpy as np
import pytest
from nights import LAST, WEIGHTS, make_config, make_examples, make_world

from lakerec.errors import ModelError
from lakerec.scorer.bundle import Bundle, Recipe
from lakerec.scorer.evaluation import Judged, Sheet, sources
from lakerec.scorer.nightly import Night, cuts_of


class Broken:
    """A source whose scores are nan."""

    def score(self, histories):
        return np.full((len(histories), histories.n_items), np.nan, dtype=np.float32)


@pytest.fixture(scope="module")
def night(tiny):
    world = make_world()
    return Night(world, cuts_of(world, make_examples()), LAST, make_config(tiny), 1, lambda _: None)


def test_broken_probabilities_have_nan_for_figures(night):
    cut = night.test
    sheet = Sheet(night.world, cut, night.world.shelf(cut.day), 0, {})
    ranks = np.ones(len(cut.part.target_items))
    chances = np.array([0.5, np.nan, 0.25], dtype=np.float32)
    labels, owners = np.array([1, 0, 0], dtype=np.float32), np.zeros(3, dtype=np.int64)
    rows = {row["metric"]: row["value"] for row in sheet.rows(Judged("v", ranks, None, chances, labels, owners))}
    assert all(np.isnan(rows[metric]) for metric in ("logloss", "ece", "auc", "uauc"))
    sound = Judged("v", ranks, None, np.nan_to_num(chances), labels, owners)
    assert all(np.isfinite(row["value"]) for row in sheet.rows(sound) if row["metric"] in ("logloss", "ece"))


def test_a_broken_source_finds_nothing(night):
    cut = night.test
    stage = night.stage(cut.day, cut.known, [])
    members = {"ease": stage.members["ease"], "broken": Broken()}
    recommender = type("R", (), {"stage": type("S", (), {"members": members, "retriever": None, "repeats": True})()})()
    found = {judged.name: judged.ranks for judged in sources(cut, recommender, [])}
    assert np.isinf(found["broken"]).all() and np.isfinite(found["ease"]).all()


def test_a_model_of_other_text_vectors_is_refused_by_name(tmp_path):
    recipe = Recipe({}, 10, True, [], sorted(WEIGHTS), {}, False, "minilm-l6@1")
    opened = Bundle(tmp_path / "v1" / "recommender", recipe)
    opened.check_text_model("minilm-l6@1")
    with pytest.raises(ModelError, match=r"v1 was trained on .* minilm-l6@1, the configuration has other@2"):
        opened.check_text_model("other@2")
