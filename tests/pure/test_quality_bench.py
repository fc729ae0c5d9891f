"""The quality bench on made data: its cuts leak nothing, its sets have their counts, its tables say what was found."""

import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmarks import record
from benchmarks.quality import data as sets
from benchmarks.quality import models, report, run
from benchmarks.quality.courses import course, pooled
from benchmarks.quality.data import Dataset, Records, core, graph_nodes
from benchmarks.quality.plans import PLANS, WITHOUT, Plan, Table
from scipy import sparse

from lakerec.config import Ranker
from lakerec.errors import SourceError
from lakerec.generators import MEMBERS
from lakerec.generators.base import Shelf
from lakerec.generators.blend import blended, fitted_weights, standardised
from lakerec.histories import Histories
from lakerec.protocols import GlobalTime, LeaveOneOut
from lakerec.scorer.retriever import RetrieverSettings

PEOPLE, ITEMS, EVENTS = 70, 30, 14


def make_histories(people=PEOPLE, items=ITEMS, events=EVENTS, seed=0):
    """Everybody walks up the catalogue from a place of their own, one item a day, never twice the same."""
    start = np.random.default_rng(seed).integers(0, items, people)
    steps = np.arange(events)
    item = (start[:, None] + steps) % items
    users, times = np.repeat(np.arange(people), events), np.tile(steps + 0.5, people)
    return Histories.of_events(users, item.ravel(), times, people, items)


def make_dataset():
    histories = make_histories()
    text = np.eye(ITEMS, 8, dtype=np.float32)[np.arange(ITEMS) % ITEMS] + 0.1
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    ids = [str(item) for item in range(ITEMS)]
    kind = ["even" if person % 2 == 0 else "odd" for person in range(PEOPLE)]
    records = Records("made", histories, ids, ids, np.full(ITEMS, np.nan), {"kind": kind})
    return Dataset(records, Shelf(text))


def make_plan(**changes):
    settings = {"size": 8, "layers": 1, "heads": 2, "window": 8, "epochs": 2, "learning_rate": 0.01}
    plan = Plan(
        tables=(Table(LeaveOneOut(), lessons=2),),
        generators=("popular", "markov"),
        settings={"popular": {"days": 1e9}},
        retriever=RetrieverSettings(**settings),
        ranker=Ranker(depth=10, rounds=5, min_leaf=2, folds=2),
        seeds=(1, 2),
        pairs=(("ranker", WITHOUT), ("markov", "popular")),
    )
    return replace(plan, **changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "load", lambda name: make_dataset())
    return tmp_path


class TestCourses:
    @pytest.mark.parametrize("validation", [False, True])
    @pytest.mark.parametrize(
        "protocol", [LeaveOneOut(), LeaveOneOut(ties="shuffled"), GlobalTime(11.0, 2.0), GlobalTime(11.0, 2.0, True)]
    )
    def test_no_source_has_seen_a_target(self, protocol, validation):
        made = course(protocol, make_histories(), 3, validation=validation)
        cuts = [*made.lessons, made.tuning, made.blending, made.judged]
        assert len(cuts) >= 4
        for cut in cuts:
            for part in cut.parts:
                for row, (user, item) in enumerate(zip(part.target_users, part.target_items, strict=True)):
                    person = part.people[user]
                    mine = slice(cut.ground.starts[person], cut.ground.starts[person + 1])
                    assert item not in cut.ground.items[mine], (cut.name, row)
                    known = slice(part.histories.starts[user], part.histories.starts[user + 1])
                    assert item not in part.histories.items[known]

    @pytest.mark.parametrize("protocol", [LeaveOneOut(), GlobalTime(11.0, 2.0)])
    def test_choosing_does_not_touch_the_test(self, protocol):
        histories = make_histories()
        test, valid = (course(protocol, histories, 2, validation=flag) for flag in (False, True))
        assert valid.judged.name == test.tuning.name
        wanted = {(p, i) for p, i in zip(*_targets(test.judged.parts[0]), strict=True)}
        for cut in [*valid.lessons, valid.judged, valid.blending, valid.tuning]:
            for part in cut.parts:
                assert not wanted & set(zip(*_targets(part), strict=True))
        assert len(valid.stop.items) == len(test.judged.ground.items)

    def test_further_cuts_of_leave_one_out_know_less_and_come_first(self):
        made = course(LeaveOneOut(), make_histories(), 2, cuts=3)
        assert [cut.name for cut in made.lessons] == ["minus_8", "minus_6", "minus_4"]
        for cut in made.lessons:
            for part in cut.parts:
                assert not np.isin(part.target_items[:1], cut.ground.select(part.people[:1]).items).any()
        assert made.blending is made.tuning

    def test_the_lessons_of_leave_one_out_are_three_to_seven_from_the_end(self):
        histories = make_histories()
        made = course(LeaveOneOut(), histories, 5)
        (lesson,) = made.lessons
        assert lesson.name == "minus_7" and len(lesson.ground.items) == len(histories.items) - 7 * PEOPLE
        last = histories.starts[1:] - 1
        for back, part in enumerate(lesson.parts, start=2):
            assert np.array_equal(part.target_items, histories.items[last - back])
        assert made.judged.name == "minus_1" and made.tuning.name == "minus_2"

    def test_the_last_five_are_fitted_without_them(self):
        made = course(LeaveOneOut(), make_histories(), 2, tests=5)
        assert [cut.name for cut in (made.judged, made.tuning, *made.lessons)] == ["minus_5", "minus_6", "minus_8"]
        assert len(made.judged.parts) == 5 and "last_5" in made.name

    def test_with_the_targets_time_people_are_scored_then(self):
        made = course(LeaveOneOut(), make_histories(), 2, timed=True)
        assert np.allclose(made.judged.parts[0].histories.at, EVENTS - 0.5)
        assert np.allclose(course(LeaveOneOut(), make_histories(), 2).judged.parts[0].histories.at, EVENTS - 1.5)

    def test_parts_behind_one_another(self):
        parts = course(LeaveOneOut(), make_histories(), 2, tests=3).judged.parts
        whole = pooled(parts)
        assert len(whole) == sum(map(len, parts)) and np.array_equal(whole.people[: len(parts[0])], parts[0].people)
        assert np.array_equal(whole.histories.items[: len(parts[0].histories.items)], parts[0].histories.items)
        few = whole.some(7, seed=3)
        assert len(few) == 7 and len(few.target_items) == 7


def _targets(part):
    return part.people[part.target_users].tolist(), part.target_items.tolist()


class TestBlend:
    def test_all_weight_goes_to_the_source_that_knows(self):
        rng = np.random.default_rng(0)
        noise, knows = (rng.normal(size=(200, 20)).astype(np.float32) for _ in range(2))
        users, items = np.arange(200), (knows + rng.normal(size=knows.shape)).argmax(axis=1)
        scores = [standardised(each) for each in (noise, knows, -knows)]
        weights = fitted_weights(scores, np.ones((200, 20), dtype=bool), users, items)
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
        assert weights[1] > 0.9 and weights[2] == 0
        assert np.allclose(blended(scores, np.array([0, 1.0, 0])), scores[1])

    def test_two_halves_of_the_truth_share_the_weight(self):
        rng = np.random.default_rng(1)
        one, two = (rng.normal(size=(500, 30)).astype(np.float32) for _ in range(2))
        users, items = np.arange(500), (one + two + rng.gumbel(size=one.shape)).argmax(axis=1)
        weights = fitted_weights([standardised(one), standardised(two)], np.ones(one.shape, dtype=bool), users, items)
        assert weights == pytest.approx([0.5, 0.5], abs=0.1)

    def test_a_silent_source_gets_none(self):
        silent = standardised(np.zeros((3, 4), dtype=np.float32))
        assert not silent.any()
        weights = fitted_weights([silent], np.ones((3, 4), dtype=bool), np.arange(3), np.arange(3))
        assert weights.tolist() == [1.0]

    def test_what_is_masked_is_not_counted(self):
        scores = standardised(np.array([[9.0, 1.0, 0.0], [9.0, 1.0, 0.0]], dtype=np.float32))
        allowed = np.array([[False, True, True]] * 2)
        weights = fitted_weights([scores, -scores], allowed, np.arange(2), np.array([1, 1]))
        assert weights[0] == pytest.approx(1)


class TestData:
    def test_five_of_each_is_asked_again_and_again(self):
        users = np.repeat(np.arange(6), 5)
        items = np.tile(np.arange(5), 6)
        extra = [(6, 0), (6, 1), (6, 2), (6, 3), (6, 9)]  # falls when item 9 does
        users, items = np.append(users, [6] * 5), np.append(items, [item for _, item in extra])
        assert np.array_equal(core(users, items), users < 6)

    def test_nodes_that_one_item_has_alone_are_left_out(self):
        triples = pd.DataFrame([("a", "by", "x"), ("b", "by", "x"), ("a", "by", "y"), ("z", "wrote", "b")])
        links = pd.DataFrame({"item_id": ["1", "2"], "entity_id": ["a", "b"]})
        graph = graph_nodes(triples, links, ["1", "2", "3"])
        assert sparse.issparse(graph) and graph.toarray().tolist() == [[1], [1], [0]]

    def test_other_counts_are_refused(self, tmp_path, monkeypatch):
        place = tmp_path / "movielens-1m"
        place.mkdir()
        for name, text in {
            "events": "user_id,item_id,timestamp,position\n1,2,3,0\n",
            "items": "item_id,title\n2,A\n",
        }.items():
            (place / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
        monkeypatch.setenv("LAKEREC_DATA", str(tmp_path))
        with pytest.raises(SourceError, match=r"999,611 events .* 1 events / 1 users / 1 items found"):
            sets.read("ml_1m")

    @pytest.mark.parametrize("name", sorted(PLANS))
    def test_the_published_files_have_their_counts(self, name):
        place = record.ROOT.parent / "shared" / "data" / sets.FOLDERS[name]
        if not place.exists():
            pytest.skip(f"{place.name} is not here: the loader of {name} is not tested")
        records = sets.read(name)
        histories = records.histories
        assert (len(histories.items), len(histories), histories.n_items) == sets.COUNTS[name]
        assert len(records.texts) == len(records.price) == histories.n_items == len(records.item_ids)
        assert (np.diff(histories.times)[np.diff(histories.users) == 0] >= 0).all()
        if name == "online_retail":
            assert int((histories.weights > 0).sum()) == 397_924 and len(records.attributes["country"]) == 4_372
        if name == "ml_100k":
            assert records.graph is not None and records.profiles is not None and len(records.profiles) == 943


class TestPlans:
    @pytest.mark.parametrize("name", sorted(PLANS))
    def test_every_setting_is_of_a_generator_that_takes_it(self, name):
        plan = PLANS[name]
        assert set(plan.generators) <= set(MEMBERS) and set(plan.settings) <= set(plan.generators)
        for generator, settings in plan.settings.items():
            assert set(settings) == set(MEMBERS[generator].grid[0])

    def test_what_makes_a_run_smaller_writes_nothing(self):
        for flag in (["--epochs", "2"], ["--seeds", "1"], ["--generators", "ease"]):
            with pytest.raises(SystemExit):
                run.arguments(["ml_1m", *flag])
            assert run.arguments(["ml_1m", *flag, "--validation"]).validation

    def test_a_set_without_a_plan_is_refused(self):
        with pytest.raises(SystemExit):
            run.arguments(["ml_20m"])


class TestRun:
    def test_a_whole_table(self, folder):
        options = run.arguments(["ml_1m", "--no-spark"])
        run.run("made", make_plan(), options)
        rows = json.loads((folder / "results" / "made.json").read_text())
        assert {row["model"] for row in rows} >= {"popular", "markov", "blend", "retriever", WITHOUT, "ranker"}
        keys = {"data", "protocol", "model", "metric", "slice", "value", "low", "high", "users", "seed", "seconds"}
        assert all(keys | {"commit", "date", "cores", "memory_gib"} <= set(row) for row in rows)
        found = {(row["model"], row["metric"], row["slice"], row["seed"]): row for row in rows}
        markov = found["markov", "hr@10", "all", None]
        assert markov["value"] > 0.9 and markov["low"] <= markov["value"] <= markov["high"]
        each = [found["ranker", "ndcg@10", "all", seed]["value"] for seed in (1, 2)]
        assert found["ranker", "ndcg@10", "all", "mean"]["value"] == pytest.approx(np.mean(each), abs=1e-5)
        assert found["ranker", "ndcg@10", "all", "spread"]["low"] == pytest.approx(min(each), abs=1e-5)
        gain = found["markov - popular", "ndcg@10", "all", "mean"]
        both = [found[name, "ndcg@10", "all", None]["value"] for name in ("markov", "popular")]
        assert gain["value"] == pytest.approx(both[0] - both[1], abs=1e-5) and gain["detectable"] > 0
        assert found["ranker", "recall@candidates", "all", 1]["value"] <= 1
        assert found["ranker", "hr@10", "kind even", "mean"]["users"] == PEOPLE // 2
        (file,) = (folder / "results").glob("made-*.parquet")
        ranks = pd.read_parquet(file)
        assert set(ranks["model"]) == {row["model"] for row in rows if " - " not in row["model"]}
        assert (folder / "results" / "made.png").stat().st_size > 10_000

    def test_a_validation_writes_no_result_and_a_second_run_trains_nothing(self, folder, capsys):
        options = run.arguments(["ml_1m", "--no-spark", "--validation"])
        plan = make_plan(seeds=(1,))
        run.run("made", plan, options)
        first = capsys.readouterr().out
        assert not (folder / "results").exists() and "validation" in first
        run.run("made", plan, options)
        second = capsys.readouterr().out
        assert "epoch 1/2" in first and "epoch 1/2" not in second and "resumed after epoch 2" in second
        assert (
            first[first.index("\nmade:") :].split("seconds")[0] == second[second.index("\nmade:") :].split("seconds")[0]
        )

    def test_pooled_targets_are_drawn_by_person(self, folder):
        options = run.arguments(["ml_1m", "--no-spark"])
        table = Table(LeaveOneOut(), lessons=2, tests=3, paired=True, refit=False)
        run.run("made", make_plan(tables=(table,), seeds=(1,)), options)
        rows = json.loads((folder / "results" / "made.json").read_text())
        assert {row["model"] for row in rows} == {"ranker", WITHOUT, f"ranker - {WITHOUT}"}
        gain = next(row for row in rows if " - " in row["model"] and row["slice"] == "all")
        assert gain["users"] == PEOPLE

    def test_a_global_time_split_with_profiles_and_arms(self, folder, monkeypatch):
        told = make_dataset()
        graph = sparse.csr_matrix(np.eye(ITEMS, 3, dtype=np.float32)[np.arange(ITEMS) % 3])
        known = replace(told.records.histories, profiles=np.eye(PEOPLE, 8, dtype=np.float32))
        dataset = Dataset(replace(told.records, histories=known), Shelf(told.shelf.text, graph))
        monkeypatch.setattr(run, "load", lambda name: dataset)
        arms = (models.Arm("retriever ids", text="none"), models.Arm("retriever permuted text", text="permuted"))
        plan = make_plan(
            tables=(Table(GlobalTime(11.0, 2.0, repeats=True), lessons=2),),
            generators=("popular", "markov", "personal", "graph", "profile"),
            arm=models.Arm("retriever", graph=True, profile=True),
            arms=arms,
            seeds=(1,),
        )
        run.run("made", plan, run.arguments(["ml_1m", "--no-spark", "--validation"]))

    def test_the_ranker_without_each_source(self, folder):
        options = run.arguments(["ml_1m", "--no-spark", "--without-each"])
        run.run("made", make_plan(), options)
        rows = json.loads((folder / "results" / "made_without_each.json").read_text())
        gained = {row["model"] for row in rows if " - " in row["model"]}
        assert gained == {f"ranker without {name} - ranker" for name in ("popular", "markov", "retriever")}
        assert all("validation" in row["protocol"] for row in rows)

    def test_the_ranker_without_any_text(self, folder):
        plan = make_plan(generators=("popular", "text", "text_last"))
        run.run("made", plan, run.arguments(["ml_1m", "--no-spark", "--without-text"]))
        rows = json.loads((folder / "results" / "made_without_text.json").read_text())
        assert {row["model"] for row in rows} == {"ranker", run.NO_TEXT, f"ranker - {run.NO_TEXT}"}
        assert all(row["protocol"].endswith(", without text") for row in rows)
        told = [
            {(row["metric"], row["slice"]): row["value"] for row in rows if row["model"] == name}
            for name in ("ranker", run.NO_TEXT)
        ]
        assert told[0] != told[1]


class TestReport:
    def test_a_figure_has_the_interval_and_what_could_be_seen(self):
        dataset = make_dataset()
        part = course(LeaveOneOut(), dataset.records.histories, 2).judged.parts[0]
        made = report.Report("p", dataset, part, np.ones(ITEMS), PEOPLE)
        ranks = np.where(np.arange(PEOPLE) % 2 == 0, 1.0, np.inf)
        made.add("model", None, models.Outcome(ranks, np.full((PEOPLE, 10), -1), 1.0, 4.0))
        rows = {(row["metric"], row["slice"]): row for row in made.rows(())}
        row = rows["hr@10", "all"]
        assert row["value"] == 0.5 and row["low"] < 0.5 < row["high"] and row["users"] == PEOPLE
        assert row["detectable"] == pytest.approx(2.8 * 0.5 / np.sqrt(PEOPLE), rel=0.1)
        assert rows["recall@candidates", "all"]["value"] == 0.5 and rows["candidates", "all"]["value"] == 4
        assert rows["coverage", "all"]["low"] is None

    def test_the_table_has_the_published_figures_beside(self):
        dataset = make_dataset()
        part = course(LeaveOneOut(), dataset.records.histories, 2).judged.parts[0]
        made = report.Report("p", dataset, part, np.ones(ITEMS), PEOPLE)
        made.add("model", 3, models.Outcome(np.ones(PEOPLE), np.zeros((PEOPLE, 10), dtype=int), 1.0))
        text = report.table(made.rows(()), {"Others": {"hr@10": 0.1524, "ndcg@10": 0.0759}})
        assert "published: Others" in text and "0.1524" in text and "1.0000 [1.0000, 1.0000] 0.0000" in text


def test_lists_leave_out_what_a_silent_source_has_nothing_on():
    histories = make_histories()
    part = course(LeaveOneOut(), histories, 2).judged.parts[0]
    silent = SimpleNamespace(score=lambda known: np.zeros((len(known), ITEMS), dtype=np.float32))
    found = models.catalogue_outcomes({"silent": silent}, part, False, {})["silent"]
    assert (found.lists == -1).all() and np.allclose(found.ranks, (ITEMS - (EVENTS - 1) + 1) / 2)
