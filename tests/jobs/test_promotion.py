"""The night's promotion on a tiny lake: who serves, what ops.runs and the registry say, and the way back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from datetime import date, timedelta
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from tests.conftest import DAY, LAKE_STEPS, Shop, day_after, event

from lakerec import cli, models
from lakerec.errors import ModelError, NotEnoughDataError, StaleRunError, UsageError
from lakerec.scorer.registry import MODEL, register

OLD = "20260301-00000000-000000"
DAYS = 6  # of events before a real training
Row = dict[str, Any]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database: it takes seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    register(f"sqlite:///{file}", "any", file.parent, {})
    return file


@pytest.fixture()
def shop(shop: Shop, database: Path) -> Shop:
    """An empty deployment that has its MLflow database."""
    (shop.folder / "lake" / "_mlflow").mkdir(parents=True)
    shutil.copy(database, shop.folder / "lake" / "_mlflow")
    return shop


def artefact(shop: Shop, version: str) -> None:
    """A folder that holds a model as far as the registry can tell."""
    folder = shop.folder / "lake" / models.FOLDER / version
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    files = {"weights": hashlib.sha256(b"w").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"version": version, "files": files}))


def trained(shop: Shop, day: date = DAY) -> str:
    """A snapshot of a day and a model of it; the model's version."""
    snapshot = f"{day:%Y%m%d}aabbccdd"
    line = {"snapshot_id": snapshot, "as_of_date": day, "manifest": "{}", "rows": 9}
    shop.job("build_examples", day).lake.append_rows("ml.snapshots", [line])
    version = models.version_of(snapshot, day, shop.config)
    artefact(shop, version)
    return version


def evaluated(shop: Shop, rows: list[Row], day: date = DAY) -> None:
    """What evaluate_scorer left of the day's snapshot."""
    lake = shop.job("evaluate_scorer", day).lake
    snapshot = models.snapshot_of(lake, day)
    named = [row | {"data": snapshot, "protocol": "global_time", "seed": 17} for row in rows]
    lake.replace_rows("gold.model_metrics", named, f"data = '{snapshot}'")


def row(version: str, value: float, half: float = 0.0, part: str = "all", metric: str = "ndcg@10") -> Row:
    """A row of gold.model_metrics over 1,000 users."""
    figure = {"value": value, "low": value - half, "high": value + half, "users": 1000}
    return {"version": version, "slice": part, "metric": metric} | figure


def compared(version: str, gain: float, rival: str = "ease") -> list[Row]:
    """A rival of NDCG@10 0.3 and a challenger that differs from it by `gain`."""
    return [row(rival, 0.3), row(version, 0.3 + gain), row(version, gain, 0.005, f"against {rival}")]


def serving(shop: Shop, day: date = DAY) -> str | None:
    """The version that ml.promotions names for a day."""
    found = models.serving(shop.job("audit").lake, day)
    return found.version if found else None


def last_run(shop: Shop, job: str = "promote_scorer") -> Row:
    """The newest row of ops.runs of a job."""
    return max((r for r in shop.rows("ops.runs") if r["job"] == job), key=lambda r: r["started_at"])


def details(shop: Shop, job: str = "promote_scorer") -> dict[str, str]:
    return dict(last_run(shop, job)["details"])


def registered(shop: Shop, version: str) -> Any:
    client = MlflowClient(f"sqlite:///{shop.folder}/lake/_mlflow/mlflow.db")
    (found,) = client.search_model_versions(f"name = '{MODEL}' and tag.version = '{version}'")
    champion = client.get_registered_model(MODEL).aliases.get("champion")
    return found.tags, champion == found.version


def champion(shop: Shop, version: str = OLD, day: date = day_after(-1)) -> None:
    """An earlier model serves."""
    artefact(shop, version)
    models.promote(shop.job("promote_scorer").lake, version, day, "passed: it was the first")


def test_the_first_model_serves_where_it_reaches_the_baseline_and_twice_changes_nothing(shop: Shop):
    version = trained(shop)
    evaluated(shop, compared(version, 0.01))
    counts = shop.run("promote_scorer")
    (entry,) = shop.rows("ml.promotions")
    assert (entry["version"], entry["effective_from"], counts["promoted"]) == (version, DAY, True)
    assert entry["reason"].startswith("passed: ndcg@10 0.3100 against 0.3000 (ease), difference +0.0100")
    tags, alias = registered(shop, version)
    assert (tags["gate"], tags["ndcg_at_10"], alias) == (entry["reason"], "0.31", True)
    shop.run("promote_scorer")
    assert shop.rows("ml.promotions") == [entry] and details(shop)["gate"] == "passed: serves already"
    assert registered(shop, version)[0]["gate"] == entry["reason"]


@pytest.mark.parametrize(
    ("gain", "rules"),
    [(-0.05, "not worse"), (nan, "finite")],
    ids=["worse", "broken"],
)
def test_a_refused_challenger_is_recorded_and_the_champion_serves_on(shop: Shop, gain: float, rules: str):
    champion(shop)
    version = trained(shop)
    evaluated(shop, [row("ease", 0.2), *compared(version, gain, OLD)])
    counts = shop.run("promote_scorer")
    assert not counts["promoted"] and serving(shop) == OLD
    told = details(shop)
    assert last_run(shop)["status"] == "rejected" and told["failed"] == rules and told["champion"] == OLD
    assert counts["gate"] == told["gate"] and told["gate"].startswith("rejected: ")
    tags, alias = registered(shop, version)
    assert tags["gate"] == told["gate"] and not alias


def test_an_equal_challenger_takes_over(shop: Shop):
    champion(shop)
    version = trained(shop)
    evaluated(shop, compared(version, 0.0, OLD))
    assert shop.run("promote_scorer")["promoted"] and serving(shop) == version
    assert serving(shop, day_after(-1)) == OLD


def test_a_champion_that_cannot_be_read_blocks_nobody_and_one_not_evaluated_is_waited_for(shop: Shop):
    models.promote(shop.job("promote_scorer").lake, OLD, day_after(-1), "passed")
    version = trained(shop)
    evaluated(shop, compared(version, 0.01))
    with pytest.raises(NotEnoughDataError, match=f"{OLD} was not evaluated on this snapshot: run evaluate_scorer"):
        shop.run("promote_scorer")
    evaluated(shop, [*compared(version, 0.01), row(OLD, 1.0, metric="unreadable")])
    assert shop.run("promote_scorer")["promoted"]
    assert f"the champion {OLD} cannot be read" in details(shop)["gate"]


def test_a_challenger_without_its_artefact_does_not_serve(shop: Shop):
    version = trained(shop)
    evaluated(shop, compared(version, 0.01))
    (shop.folder / "lake" / models.FOLDER / version / "weights").write_bytes(b"x")
    with pytest.raises(ModelError, match="weights is missing or differs from its hash"):
        shop.run("promote_scorer")
    assert shop.rows("ml.promotions") == []


def test_a_rollback_between_judgement_and_promotion_is_not_undone(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    champion(shop)
    version = trained(shop)
    evaluated(shop, compared(version, 0.0, OLD))
    judge = models.version_of

    def meanwhile(*given: Any) -> str:
        models.promote(other.lake, OLD, DAY, "rolled back by somebody")
        return judge(*given)

    other, job = shop.job("rollback_scorer"), shop.job("promote_scorer")
    models.promotions(job.lake)
    monkeypatch.setattr(models, "version_of", meanwhile)
    from promote_scorer import run

    with pytest.raises(StaleRunError, match=r"ml\.promotions has changed"):
        run(job)
    assert serving(shop) == OLD


def test_an_earlier_model_comes_back_and_its_successor_only_by_hand(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    champion(shop)
    version = trained(shop)
    evaluated(shop, compared(version, 0.01, OLD))
    shop.run("promote_scorer")
    monkeypatch.setenv("LAKEREC_ROLLBACK_TO", OLD)
    monkeypatch.setenv("USER", "ann")
    told = shop.run("rollback_scorer")["rollback"]
    assert told.startswith("rolled back by ann, run rollback_scorer-2026-03-02-")
    assert serving(shop) == OLD and registered(shop, OLD)[1] and details(shop, "rollback_scorer")["rollback"] == told
    assert shop.run("rollback_scorer")["rollback"] == told and len(shop.rows("ml.promotions")) == 3
    # The same night again: what somebody took out of service is not put back by a retry.
    assert not shop.run("promote_scorer")["promoted"]
    assert details(shop)["gate"] == f"rejected: failed not withdrawn: it served before and was {told}"
    # The next night's model is judged against the one that serves.
    later = trained(shop, day_after(1))
    evaluated(shop, compared(later, 0.01, OLD), day_after(1))
    assert shop.run("promote_scorer", start=day_after(1))["promoted"] and serving(shop, day_after(1)) == later
    monkeypatch.setenv("LAKEREC_ROLLBACK_TO", version)
    shop.run("rollback_scorer", start=day_after(1))
    assert serving(shop, day_after(1)) == version and serving(shop) == OLD


@pytest.mark.parametrize(
    ("version", "day", "error", "told"),
    [
        ("", DAY, UsageError, "names no version"),
        ("nowhere", DAY, ModelError, "nowhere holds no model"),
        (OLD, day_after(-1), UsageError, f"is before {DAY}, the day of the newest lists or promotion"),
    ],
    ids=["none", "no artefact", "too early"],
)
def test_a_rollback_that_makes_no_sense_changes_nothing(shop: Shop, monkeypatch, version, day, error, told):
    champion(shop)
    models.promote(shop.job("promote_scorer").lake, "newer", DAY, "passed")
    monkeypatch.setenv("LAKEREC_ROLLBACK_TO", version)
    with pytest.raises(error, match=told):
        shop.run("rollback_scorer", start=day)
    assert len(shop.rows("ml.promotions")) == 2


def test_the_command_speaks_of_the_lists_now_served(shop: Shop, monkeypatch, capsys):
    champion(shop)
    models.promote(shop.job("promote_scorer").lake, "newer", DAY, "passed")
    served = {"as_of_date": day_after(2), "user_id": "u1", "rank": 1, "item_id": "i1", "model_version": "newer"}
    shop.job("score_candidates").lake.append_rows("gold.recommendations", [served])
    monkeypatch.setenv("LAKEREC_ROLLBACK_TO", "")
    monkeypatch.setattr(cli, "_session", lambda *_: _Open(shop))
    assert shop.config.lake
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollback", "--config", str(shop.folder / "config.yaml"), "--to", OLD])
    assert not ended.value.code and f"{OLD} serves from {day_after(2)} on" in capsys.readouterr().out
    assert [serving(shop, day_after(n)) for n in (-1, 0, 1, 2)] == [OLD, "newer", "newer", OLD]


def test_a_day_that_has_not_begun_is_no_day_to_roll_back_from(shop: Shop, monkeypatch, capfd):
    """The log is only appended to: an entry of 2062 would refuse every rollback before it."""
    champion(shop)
    monkeypatch.setenv("LAKEREC_ROLLBACK_TO", "")
    monkeypatch.setattr(cli, "_session", lambda *_: _Open(shop))
    assert shop.config.lake
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollback", "--config", str(shop.folder / "config.yaml"), "--to", OLD, "--day", "2062-03-08"])
    assert ended.value.code == UsageError.exit_code and "a day that has not begun" in "".join(capfd.readouterr())
    assert len(shop.rows("ml.promotions")) == 1


class _Open:
    """The tests' session, which a command must not end."""

    def __init__(self, shop: Shop) -> None:
        self.spark = shop.spark

    def __enter__(self) -> Any:
        return self.spark

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture(scope="module")
def night(spark, database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, str]:
    """A lake whose training of the last day is the champion's twin, and the twin's version."""
    shop = Shop(tmp_path_factory.mktemp("night"), spark)
    quick = {"ranker": {"rounds": 12, "patience": 4, "folds": 2}, "retriever": {"size": 8, "epochs": 2}}
    shop.settings["scorer"] |= {"language_model": "always", **quick}
    shop.settings["scorer"]["training"]["targets"] = ["purchase"]
    shop.settings["candidates"]["generators"] = {"popular": {}, "personal": {}, "markov": {}}
    shop.settings["patterns"] = {"enabled": False}
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        bought = [event(n * 9 + m, user=f"u{m}", day=day_after(n), item=f"i{(m + n // 3) % 5}") for m in range(9)]
        shop.deliver(day_after(n), bought)
    (shop.folder / "lake" / "_mlflow").mkdir(parents=True)
    shutil.copy(database, shop.folder / "lake" / "_mlflow")
    version = shop.run(*LAKE_STEPS, "embed_items", "build_examples", "train_scorer", days=DAYS)["version"]
    shutil.copytree(twin(shop, version), twin(shop, OLD))
    models.promote(shop.job("promote_scorer").lake, OLD, day_after(DAYS - 2), "passed: it was the first")
    return shop, version


def twin(shop: Shop, version: str) -> Path:
    """The folder of a version."""
    return shop.folder / "lake" / models.FOLDER / version


def broken_weights(file: Path) -> None:
    """Every weight of a safetensors file as nan."""
    save_file({name: torch.full_like(tensor, nan) for name, tensor in load_file(file).items()}, file)


def broken_leaves(file: Path) -> None:
    """Every leaf of a LightGBM file as nan; the sizes of its trees' texts are left out."""
    text = re.sub(r"(?m)^leaf_value=.*$", lambda line: re.sub(r"[^ =]+(?= |$)", "nan", line[0]), file.read_text())
    file.write_text(re.sub(r"(?m)^tree_sizes=.*\n", "", text))


def damage(folder: Path, files: str, broken: Any) -> None:
    """Break some files of an artefact and write their hashes into its manifest, so that it loads."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = [file for file in folder.glob(files) if file.is_file()]
    assert found
    for file in found:
        broken(file)
        manifest["files"][file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("files", "broken", "told"),
    [
        ("recommender/retriever-evaluated-*/*.safetensors", broken_weights, "retriever scores of all is nan"),
        ("head.safetensors", broken_weights, "logloss of all is nan"),
        ("recommender/booster-*.txt", broken_leaves, "logloss of all is nan"),
    ],
    ids=["retriever", "language model", "ranker"],
)
def test_a_trained_challenger_that_is_broken_is_refused_by_both_jobs(night, files: str, broken: Any, told: str):
    shop, version = night
    shutil.rmtree(twin(shop, version))
    shutil.copytree(twin(shop, OLD), twin(shop, version))
    assert {(twin(shop, version) / "recommender" / f"{name}.json").exists() for name in ("final", "unread")} == {True}
    damage(twin(shop, version), files, broken)
    counts = shop.run("evaluate_scorer", "promote_scorer", days=DAYS)
    assert not counts["promoted"] and serving(shop, day_after(DAYS - 1)) == OLD
    assert [entry["version"] for entry in shop.rows("ml.promotions")] == [OLD]
    found = details(shop)
    assert last_run(shop)["status"] == "rejected" and (found["version"], found["failed"]) == (version, "finite")
    assert found["gate"].startswith("rejected: failed finite: ") and told in found["gate"]
    tags, alias = registered(shop, version)
    assert tags["gate"] == found["gate"] and not alias
    rows, without = shop.rows("gold.model_metrics"), f"{version} without language model"
    assert {"all", "new items"} <= {row["slice"] for row in rows if row["version"] == without}
    paired = {row["slice"] for row in rows if row["version"] == version and row["slice"].startswith("against ")}
    assert {f"against {without}", f"against {without} | new items"} <= paired
    assert any(row["metric"] == "language_model_gain" and row["slice"] == "validation" for row in rows)


def test_a_champion_that_knows_the_targets_of_the_test_is_not_compared(night):
    """As where the horizon has grown: the champion's fit for judgements is of a day behind the new test cut."""
    shop, version = night
    shutil.rmtree(twin(shop, version))
    shutil.copytree(twin(shop, OLD), twin(shop, version))
    recipe = twin(shop, OLD) / "recommender" / "recipe.json"
    kept, known = recipe.read_text(), json.loads(recipe.read_text())
    recipe.write_text(json.dumps(known | {"days": known["days"] | {"evaluated": known["days"]["serving"]}}))
    try:
        shop.run("evaluate_scorer", days=DAYS)
    finally:
        recipe.write_text(kept)
    found = {(row["version"], row["metric"]) for row in shop.rows("gold.model_metrics")}
    assert {metric for name, metric in found if name == OLD} == {"has_seen_the_targets"}
    (protocol,) = {row["protocol"] for row in shop.rows("gold.model_metrics")}
    test = [row for row in shop.rows("ml.examples") if row["split"] == "test"]
    assert f"cut={test[0]['cut_date'] + timedelta(days=1)}" in protocol and "repeats" in protocol


def test_the_same_challenger_unbroken_takes_over(night):
    shop, version = night
    shutil.rmtree(twin(shop, version))
    shutil.copytree(twin(shop, OLD), twin(shop, version))
    assert shop.run("evaluate_scorer", "promote_scorer", days=DAYS)["promoted"]
    assert serving(shop, day_after(DAYS - 1)) == version
    names = {row["version"] for row in shop.rows("gold.model_metrics")}
    assert {"popular", "retriever", "blend", version, OLD} <= names
