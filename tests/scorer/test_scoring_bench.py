"""The bench of scoring on a few people: its rows have the contract's keys, its people their sizes."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.speed import made, passes, scoring, slate_profile

from lakerec.scorer.slates import Packer, tokenise

SIZES = scoring.Sizes(rounds=1, few=2, half=3, many=4, short=(3, 12), tuned=3, held=2, candidates=4, history=12)


@pytest.fixture()
def sizes(tiny, tmp_path, monkeypatch):
    """Sizes with the tiny encoder, its artefact out of the way; torch has its threads back afterwards."""
    monkeypatch.setattr(made, "artefact", partial(made.artefact, tmp_path))
    threads = torch.get_num_threads()
    yield scoring.Sizes(**{**vars(SIZES), "model": str(tiny)})
    torch.set_num_threads(threads)


def holds(row):
    return set(scoring.CONTRACT) <= set(row) and row["ours"] > 0 and row["peer"] > 0 and row["cores"] == 2


@pytest.mark.long  # workers that load torch: half a minute
def test_the_spark_row_tells_a_workers_memory(spark, sizes):
    (row,) = scoring.complete(scoring.scaled(spark, sizes))
    assert holds(row)
    assert row["worker_peak_mib_many"] > 0


def test_the_row_of_growth_has_the_contracts_keys(sizes, monkeypatch):
    def job(_, people, lists, out):
        lists(pd.read_parquet(people)).to_parquet(out)
        scores = pd.read_parquet(out)
        assert len(scores) == 3 * scores["user_id"].nunique()
        assert scores["score"].between(0, 1).all()
        return 0.5 * scores["user_id"].nunique()

    monkeypatch.setattr(passes, "spark_job", job)
    (row,) = scoring.complete(scoring.scaled(None, sizes))
    assert holds(row)
    assert (row["ours"], row["peer"], row["unit"], row["seconds_to_linear"]) == (2.0, 2.0, "users/s", 1.0)
    assert {"date", "memory_gib", "worker_peak_mib_many", "fixed_seconds"} <= set(row)


def test_the_row_of_fine_tuning_has_the_contracts_keys_and_both_losses(sizes):
    (row,) = scoring.complete(scoring.fine_tuning(sizes))
    assert holds(row)
    assert np.isfinite([row[f"{side}_loss{when}"] for side in ("ours", "peer") for when in ("_before", "")]).all()


def test_slates_stand_beside_pairs_in_each_precision(sizes):
    rows = scoring.complete(scoring.slate_rows("a shop", made.slates(made.people(3, 4, 12)), sizes))
    assert all(map(holds, rows)) and [row["precision"] for row in rows] == list(scoring.KINDS)
    assert all(0 < row["goal"] <= 8 and 1 < row["ceiling_by_tokens"] < 4 for row in rows)


def test_texts_are_cut_to_their_tokens():
    assert made.first_tokens("a red kettle, large", 3) == "a red kettle" and made.first_tokens("", 3) == ""
    assert made.last_tokens("a red kettle, large", 2) == ", large" and made.last_tokens("", 2) == ""


def test_each_form_stands_beside_each_precision_of_the_cross_encoder(sizes):
    seconds = dict.fromkeys((*made.FORMS, *scoring.KINDS), 2.0) | {"vectors": 0.5}
    rows = scoring.complete(scoring.cross_rows(sizes, seconds))
    assert all(map(holds, rows)) and len(rows) == len(made.FORMS) * len(scoring.KINDS)
    best = [row for row in rows if row["form"] == "vectors"]
    assert [row["ratio"] for row in best] == [4 * rows[0]["ratio"]] * 2 and {row["goal"] for row in best} == {24}


@pytest.mark.parametrize("form", made.FORMS)
def test_an_artefact_of_each_form_scores_the_made_people(sizes, form):
    found = passes.scored(made.people(3, 4, 24), passes.Predictor.load(made.artefact(model=sizes.model, form=form), 1))
    assert len(found) == 12 and found["score"].between(0, 1).all()


def test_sides_run_in_turn_and_stand_with_their_medians():
    told, seconds = [], iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])

    def side(name):
        return lambda: told.append(name) or next(seconds)

    assert scoring.paired(3, {"ours": side("ours"), "peer": side("peer")}) == {"ours": 2.0, "peer": 20.0}
    assert told == ["ours", "peer"] * 3
    assert scoring.Sizes().rounds >= 5


def test_a_work_measured_again_replaces_its_rows_only(tmp_path):
    file = tmp_path / "results" / "scoring.json"
    scoring.keep([{"name": "scaling", "ours": 1}], file)
    scoring.keep([{"name": "cross-encoder", "ours": 2}, {"name": "cross-encoder", "ours": 3}], file)
    scoring.keep([{"name": "scaling", "ours": 4}], file)
    rows = [(row["name"], row["ours"]) for row in json.loads(file.read_text())]
    assert rows == [("cross-encoder", 2), ("cross-encoder", 3), ("scaling", 4)]


def test_linear_time_with_a_fixed_part_is_told_apart():
    sizes = scoring.Sizes(few=500, half=2750, many=5000)
    told = scoring.linear(sizes, {"few": 2 + 5.0, "half": 2 + 27.5, "many": 2 + 50.0})
    assert told["growth"] == 1.0 and told["fixed_seconds"] == 2.0
    assert scoring.linear(sizes, {"few": 7.0, "half": 29.5, "many": 56.5})["growth"] == 1.2
    assert told["seconds_to_linear"] == pytest.approx(52 / 70, abs=1e-3)
    assert scoring.memory(sizes, {"few": 900.0, "many": 909.0})["worker_mib_per_1000_users"] == 2.0


def test_made_people_have_their_sizes_in_tokens_and_both_labels():
    people = made.people(20, 50, 160)
    assert people.equals(made.people(20, 50, 160))
    lengths = [len(ids) for ids in tokenise(made.tokenizer(), people["history"]).values()]
    texts = [text for row in people["texts"] for text in row]
    candidates = [len(ids) for ids in tokenise(made.tokenizer(), texts).values()]
    assert np.mean(lengths) == pytest.approx(160, abs=1)
    assert np.mean(candidates) == pytest.approx(14, abs=0.5)
    assert all(0 < np.mean(row) < 0.6 for row in people["labels"])


def test_products_are_counted_for_the_tokens_that_are_needed():
    config = type("Config", (), {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2})
    (pack,) = Packer(made.tokenizer(), 12, 8).pack(made.slates(made.people(1, 3, 12)))
    owners = np.asarray(pack.owners)
    seen = (owners[None, :] == 0) | (owners[:, None] == owners[None, :])
    linear, attention = slate_profile.products(config, pack)
    assert linear == 2 * 2 * len(pack) * (4 * 8 * 8 + 2 * 8 * 16)
    assert attention == 2 * 2 * 2 * seen.sum() * 8
