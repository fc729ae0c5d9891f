"""What is broken has no figures, and stops no evaluation: the gate refuses it. The sources stand beside their blend."""

from dataclasses import replace

import numpy as np
import pytest
from nights import LAST, WEIGHTS, make_config, make_examples, make_world

from lakerec.errors import ModelError
from lakerec.features import Candidates
from lakerec.protocols import Part
from lakerec.scorer.bundle import Bundle, Recipe
from lakerec.scorer.evaluation import Judged, Sheet, sources
from lakerec.scorer.nightly import Night, cuts_of
from lakerec.scorer.recommender import Ranked, Recommender, blend_weights, full_ranks


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


def alone(night, members, weights):
    """The ranks of some sources, and of their blend, on the test cut."""
    stage = replace(night.stage(night.test.day, night.test.known, []), members=members)
    return {judged.name: judged for judged in sources(night.test, Recommender(stage, None), weights)}


@pytest.fixture(scope="module")
def members(night):
    return night.stage(night.test.day, night.test.known, []).members


def test_a_broken_source_finds_nothing_and_is_named(night, members):
    found = alone(night, {"ease": members["ease"], "broken": Broken()}, {})
    assert np.isinf(found["broken"].ranks).all() and np.isfinite(found["ease"].ranks).all()
    sheet = Sheet(night.world, night.test, night.world.shelf(night.test.day), 0, {})
    (row,) = sheet.faults("v", list(found.values()))
    assert (row["version"], row["slice"], row["metric"]) == ("v", "all", "broken scores") and np.isnan(row["value"])


def test_the_blend_stands_beside_the_sources_where_the_recipe_has_one(night, members):
    few = {name: members[name] for name in ("ease", "popular")}
    assert list(alone(night, few, {})) == ["ease", "popular"]
    found = alone(night, few, {"ease": 0.7, "popular": 0.3})
    assert list(found) == ["ease", "popular", "blend"]
    for name, member in few.items():
        assert np.array_equal(found[name].ranks, full_ranks(member, night.test.part, True, night.test.on_shelf))
        only = alone(night, few, {other: float(other == name) for other in few})
        assert np.allclose(only["blend"].ranks, found[name].ranks)
    assert not np.array_equal(found["blend"].ranks, found["ease"].ranks)


def test_the_weights_are_of_targets_that_may_be_recommended(night):
    cut = night.valid
    stage = night.stage(cut.day, cut.known, [])
    weights = blend_weights(stage, cut.part, 17, cut.on_shelf)
    assert list(weights) == list(stage.members)
    assert min(weights.values()) >= 0 and sum(weights.values()) == pytest.approx(1)
    assert weights == blend_weights(stage, cut.part, 17, cut.on_shelf)
    off = int(cut.part.target_items[0])
    shelf = cut.on_shelf & (np.arange(len(cut.on_shelf)) != off)
    assert np.isfinite(list(blend_weights(stage, cut.part, 17, shelf).values())).all()
    assert blend_weights(stage, cut.part, 17, np.zeros_like(shelf)) == {}


def test_a_candidate_without_a_score_is_not_found(night):
    one = night.test.part.histories.select(np.array([0]))
    part = Part(one, np.array([0]), np.array([0, 2]), np.array([3, 4], dtype=np.int32))
    people, nothing = np.zeros(2, dtype=np.int64), np.zeros((2, 0), dtype=np.float32)
    found = Candidates(people, np.array([3, 4]), nothing, people)
    assert Ranked(found, np.array([np.nan, 1.0], dtype=np.float32)).ranks(part).tolist() == [np.inf, 1.0]


def test_a_model_of_other_text_vectors_is_refused_by_name(tmp_path):
    recipe = Recipe({}, 10, True, [], sorted(WEIGHTS), {}, False, "minilm-l6@1")
    opened = Bundle(tmp_path / "v1" / "recommender", recipe)
    opened.check_text_model("minilm-l6@1")
    with pytest.raises(ModelError, match=r"v1 was trained on .* minilm-l6@1, the configuration has other@2"):
        opened.check_text_model("other@2")


def test_the_gain_on_validation_stands_by_slice_also_of_a_model_that_was_told_without(night):
    sheet = Sheet(night.world, night.test, night.world.shelf(night.test.day), 0, {})
    gain = {"gain": 0.1, "low": 0.05, "high": 0.15, "users": 300, "detectable": 0.07}
    loss, unknown = gain | {"gain": -0.1, "users": 120}, gain | {"low": float("nan")}
    told = gain | {"slices": {"tail items": loss, "new items": unknown}, "doubt": "surely worse in tail items"}
    rows = {row["slice"]: (row["value"], row["users"]) for row in sheet.language_model("v", told)}
    assert rows == {"validation": (0.1, 300), "validation | tail items": (-0.1, 120)}
    assert [row["slice"] for row in sheet.language_model("v", gain)] == ["validation"]
    assert sheet.language_model("v", None) == sheet.language_model("v", {"doubt": "no hit"}) == []
