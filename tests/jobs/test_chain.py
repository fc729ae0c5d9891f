"""From examples to lists: no leak, one text for training and scoring, every reader sees the same gold."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import duckdb
import pytest
from deltalake import DeltaTable
from tests.conftest import DAY, LAKE_STEPS, ROOT, Shop, day_after, event

import embed_items
import score_candidates
from lakerec import cli, models, serving
from lakerec.collect import INPUTS
from lakerec.config import load_config
from lakerec.errors import NotEnoughDataError
from lakerec.job import CODEGEN, carry_out, parsed

DAYS = 6
TRAIN = ("build_patterns", "build_examples", "train_scorer", "evaluate_scorer", "promote_scorer")


@pytest.fixture(scope="module")
def trained(spark, tmp_path_factory) -> Shop:
    """A lake of six days with a promoted model and lists as of the last day."""
    shop = Shop(tmp_path_factory.mktemp("chain"), spark)
    shop.settings["scorer"]["training"]["targets"] = ["purchase"]
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        day = day_after(n)
        bought = [event(100 * n + m, user=f"u{m}", day=day, item=f"i{m % 3}", kind="purchase") for m in range(9)]
        seen = [event(100 * n + 50 + m, user=f"u{m}", day=day, item=f"i{(m + n) % 10}", kind="view") for m in range(9)]
        shop.deliver(day, bought + seen)
    shop.run(*LAKE_STEPS, "embed_items", *TRAIN, "score_candidates", days=DAYS)
    return shop


def test_small_days_are_interpreted_in_the_steps_of_a_day_alone(shop: Shop):
    def mode(step: str, days: int) -> str | None:
        shop.job(step, days=days)
        return shop.spark.conf.get(CODEGEN)

    windows = [("conform_events", 1), ("conform_events", 8), ("score_candidates", 7), ("audit_lake", 1)]
    assert [mode(*one) for one in windows] == ["NO_CODEGEN", "FALLBACK", "NO_CODEGEN", "FALLBACK"]
    shop.spark.conf.set(CODEGEN, "CODEGEN_ONLY")
    shop.settings["spark"]["small_days"] = False
    assert mode("conform_events", 1) == "CODEGEN_ONLY"  # the property is the operator's
    shop.spark.conf.set(CODEGEN, "FALLBACK")


def test_each_text_is_encoded_once(trained: Shop):
    vectors = trained.rows("ml.item_embeddings")
    assert len(vectors) == 10 and all(abs(sum(x * x for x in row["vector"]) - 1) < 1e-3 for row in vectors)
    assert trained.run("embed_items", days=DAYS)["encoded"] == 0


def test_texts_that_another_run_has_encoded_meanwhile_are_not_appended_again(shop: Shop, monkeypatch):
    """Encoding takes long and is done outside the lease."""
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(4)])
    shop.deliver(DAY, [event(1)])
    shop.run(*LAKE_STEPS)
    encoded = embed_items._encoded

    def overtaken(*given):
        monkeypatch.setattr(embed_items, "_encoded", encoded)
        assert shop.run("embed_items")["encoded"] == 4
        return encoded(*given)

    monkeypatch.setattr(embed_items, "_encoded", overtaken)
    shop.run("embed_items")
    assert len(shop.rows("ml.item_embeddings")) == 4


def test_what_the_jobs_read_and_wrote_is_what_airflow_says_of_them(trained: Shop):
    shown = [json.loads(file.read_text()) for file in (ROOT / "tests" / "golden" / "dags").glob("*.json")]
    says = {name: task for dag in shown for name, task in dag["tasks"].items()}
    runs = [run for run in trained.rows("ops.runs") if run["job"] in says]
    assert {run["job"] for run in runs} == {*LAKE_STEPS, "embed_items", *TRAIN, "score_candidates"}
    for run in runs:
        task, job = says[run["job"]], run["job"]
        assert (job, dict(run["inputs"]).keys() - {*task["reads"]}) == (job, set())
        assert (job, dict(run["outputs"]).keys() - {*task["writes"]}) == (job, set())
    for job in ("build_examples", "train_scorer", "evaluate_scorer"):  # a training reads at the snapshot's versions
        assert {*INPUTS} <= {*says[job]["reads"]}


def test_sequences_are_counted_by_their_commit_and_not_read_again(trained: Shop):
    run = next(run for run in trained.rows("ops.runs") if run["job"] == "build_sequences")
    assert dict(run["inputs"]).keys() == {"silver.events", "silver.items"}
    assert run["rows_written"] == len(trained.rows("ml.sequences"))


def test_the_snapshot_says_what_it_was_made_of_and_a_rebuild_is_the_same(trained: Shop):
    (line,) = trained.rows("ml.snapshots")
    manifest = json.loads(line["manifest"])
    assert {"silver.events", "ml.sequences", "silver.items", "ml.item_embeddings"} <= set(manifest["inputs"])
    assert [split for _, split in manifest["cuts"]] == ["train", "valid", "test"]
    before = trained.rows("ml.examples")
    trained.run("build_examples", days=DAYS)
    assert trained.rows("ml.examples") == before and trained.rows("ml.snapshots") == [line]


def test_training_and_scoring_read_the_same_text(trained: Shop):
    told = {(str(r["as_of_date"]), r["user_id"]): r["text"] for r in trained.rows("ml.sequences")}
    examples = trained.rows("ml.examples")
    assert examples
    for row in examples:
        assert row["history"] == told.get((str(row["cut_date"]), row["user_id"]))


def known_at_the_cut(rows: list[dict]) -> list[tuple]:
    """What an example may know: the history, not the targets."""
    return sorted((row["example_id"], row["history"]) for row in rows)


def test_a_planted_future_event_never_reaches_an_example(trained: Shop, spark, tmp_path: Path):
    shop = Shop(tmp_path, spark, trained.settings)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    shutil.copytree(trained.folder / "events", tmp_path / "events")
    last, before_a_cut = day_after(DAYS - 1), day_after(DAYS - 3)
    # The first happened before two of the cuts, but nobody knew of it then; the second lies behind every cut.
    rows = [event(777, user="u0", day=before_a_cut, item="i9"), event(778, user="u0", day=last, item="i8")]
    file = tmp_path / "events" / f"{last}.csv.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + ("\n".join(rows) + "\n").encode()))
    shop.run(*LAKE_STEPS, "build_examples", days=DAYS)
    planted = shop.rows("ml.examples")
    assert known_at_the_cut(planted) == known_at_the_cut(trained.rows("ml.examples"))
    targets = {item for row in planted if row["user_id"] == "u0" for item in row["targets"]}
    assert {"i8", "i9"} <= targets


def test_the_figures_stand_beside_the_baselines_on_the_same_users(trained: Shop):
    rows = trained.rows("gold.model_metrics")
    names = {row["version"] for row in rows}
    assert {"popular", "trending", "ease", "markov", "als", "text", "user_knn", "personal"} < names
    mine = [row for row in rows if row["slice"] == "all"]
    assert len({row["users"] for row in mine if row["metric"] == "ndcg@10"}) == 1
    known = [row for row in rows if row["users"] > 1 and row["value"] == row["value"] and row["low"] == row["low"]]
    assert known and all(row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9 for row in known)


def test_a_promoted_model_scores_every_user_and_there_is_a_fallback(trained: Shop):
    (promotion,) = trained.rows("ml.promotions")
    assert promotion["effective_from"] == day_after(DAYS - 1)
    lists = trained.rows("gold.recommendations")
    users = {row["user_id"] for row in lists}
    assert users == {f"u{n}" for n in range(9)} | {"*"}
    for user in users:
        mine = sorted((row["rank"], row["item_id"], row["score"]) for row in lists if row["user_id"] == user)
        assert [rank for rank, _, _ in mine] == [1, 2, 3, 4, 5] and len({item for _, item, _ in mine}) == 5
        assert [score for *_, score in mine] == sorted((score for *_, score in mine), reverse=True)
    versions = {row["model_version"] for row in lists if row["user_id"] != "*"}
    assert versions == {promotion["version"]}


def lists_of(shop: Shop, day: date, lake: str = "lake") -> list[dict]:
    """A day's lists, but for the run that wrote them."""
    rows = [row for row in shop.rows("gold.recommendations", lake) if row["as_of_date"] == day]
    return [{name: value for name, value in row.items() if name != "run_id"} for row in rows]


def lakerec(*words: object) -> None:
    """A command as a person gives it."""
    given = cli._parser().parse_args([str(word) for word in words])
    given.command(given)


@pytest.mark.long
def test_a_list_of_the_past_is_made_again_as_operations_say(trained: Shop, tmp_path: Path, monkeypatch, capsys):
    """In another lake, after the day's files were corrected and a later day has come; then a model was promoted."""
    shutil.copytree(trained.folder, tmp_path / "shop")
    shop, day = Shop(tmp_path / "shop", trained.spark, trained.settings), day_after(DAYS)
    monkeypatch.setattr(cli, "_session", lambda *_: nullcontext(shop.spark))
    steps = (*LAKE_STEPS, "embed_items", "score_candidates")
    shop.deliver(day, [event(m, user=f"u{m}", day=day, item=f"i{m}") for m in range(4)])
    shop.run(*steps, start=day)
    served, config = lists_of(shop, day), shop.config.file
    (run_id,) = {row["run_id"] for row in shop.rows("gold.recommendations") if row["as_of_date"] == day}
    assert {row["user_id"] for row in served} == {"*", "u0", "u1", "u2", "u3"}

    shop.deliver(day, [event(m, user=f"u{m}", day=day, item=f"i{9 - m}") for m in range(6)])
    shop.write("items.csv.gz", "item_id,title", [f"i{n},new name {n}" for n in range(10)])
    shop.deliver(day_after(DAYS + 1), [event(1, user="u1", day=day_after(DAYS + 1))])
    shop.run(*steps, start=day, days=2, every_day=True)
    assert lists_of(shop, day) != served
    lakerec("backup", "--config", config, "--to", tmp_path / "backups")
    models.promote(shop.job("promote_scorer").lake, "of the next night", day, "passed")
    capsys.readouterr()

    lakerec("explain-run", run_id, "--config", config)
    told = capsys.readouterr().out
    again = ["--config", told.split("its settings")[1].strip(), "--lake", str(tmp_path / "shop/again")]
    lakerec("restore-lake", *again, "--from", tmp_path / "backups")
    read = told.split("\nread\n")[1].split("\n\n")[0]
    versions = dict(re.findall(r"^  (\S+) +version (\d+)", read, re.MULTILINE))
    assert {"gold.recommendations", "silver.events", "ml.sequences", "ml.promotions"} <= versions.keys()
    for table, number in versions.items():
        if table != "ml.promotions":
            lakerec("restore", table, "--version", number, *again)
    (command,) = (line.split() for line in told.splitlines() if "jobs/score_candidates.py" in line)
    given = parsed("score_candidates", [*command[2:], *again])  # of an option that comes twice the last holds
    carry_out(shop.spark, load_config(given.config, given.lake), "score_candidates", score_candidates.run, given)
    assert lists_of(shop, day, "again") == served


def test_delta_rs_duckdb_and_spark_read_the_same_gold(trained: Shop):
    path = str(trained.folder / "lake/gold/recommendations")
    columns = "as_of_date, user_id, rank, item_id, score, source, model_version"
    by_rs = DeltaTable(path).to_pyarrow_table()
    ours = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    query = f"SELECT {columns} FROM {{}} ORDER BY user_id, rank"
    ours.register("by_rs", by_rs)
    first = ours.sql(query.format("by_rs")).fetchall()
    extension(ours)
    second = ours.sql(query.format(f"delta_scan('{path}')")).fetchall()
    by_spark = trained.job("read").lake.read("gold.recommendations").selectExpr(*columns.split(", "))
    third = [tuple(row) for row in by_spark.orderBy("user_id", "rank").collect()]
    assert len(first) == 50 and first == second == third
    protocol = DeltaTable(path).protocol()
    assert protocol.min_reader_version == 1


def extension(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's delta extension from its wheel: the run-time download needs the internet."""
    folder = Path(duckdb.__file__).resolve().parents[1] / "duckdb_ext" / "extensions"
    (file,) = folder.glob("*/*/delta.duckdb_extension")
    connection.execute(f"LOAD '{file}'")


def test_a_catalogue_beyond_exact_items_has_inverted_files_that_say_their_recall(trained: Shop, capsys, monkeypatch):
    """A worker reads them; so small a catalogue's scores are arrays, so the lists are as before."""
    before = {(row["user_id"], row["rank"]): row["item_id"] for row in trained.rows("gold.recommendations")}
    monkeypatch.setitem(trained.settings, "candidates", {**trained.settings["candidates"], "exact_items": 9})
    trained.run("score_candidates", days=DAYS)
    told = capsys.readouterr().out
    assert "text: inverted file of 10 items, 1 of 1 lists, recall@100 1.0000 on 9 users (target 0.98)" in told
    after = {(row["user_id"], row["rank"]): row["item_id"] for row in trained.rows("gold.recommendations")}
    assert after == before


def test_publishing_serves_every_list(trained: Shop):
    counts = trained.run("publish_recommendations", days=DAYS)
    assert counts["served"] == 50
    with serving.target(trained.config) as uri:
        mine = serving.list_for(uri, "u3")
        assert [row.rank for row in mine] == [1, 2, 3, 4, 5] and mine[0].user_id == "u3"
        assert serving.list_for(uri, "a stranger")[0].user_id == "*"
    gold = {(r["user_id"], r["rank"]): r["item_id"] for r in trained.rows("gold.recommendations")}
    assert all(gold[row.user_id, row.rank] == row.item_id for row in mine)


def test_publishing_leaves_no_plan_in_the_driver(trained: Shop, spark):
    """A driver that stays warm publishes every day: each plan that stays has its broadcasts with it."""
    kept = spark._jsc.sc().dagScheduler().activeQueryToJobs()
    before = kept.size()
    trained.run("publish_recommendations", days=DAYS)
    assert kept.size() == before
    assert list(spark.range(3).toLocalIterator()) and kept.size() > before  # else it is looked for in the wrong place


def test_a_rollback_is_one_entry_and_the_day_follows_it(trained: Shop):
    job = trained.job("rollback", start=day_after(DAYS - 1))
    (first,) = trained.rows("ml.promotions")
    models.promote(job.lake, "another", day_after(DAYS + 5), "test")
    models.promote(trained.job("rollback").lake, first["version"], day_after(DAYS + 5), "rolled back")
    found = models.serving(trained.job("score").lake, day_after(DAYS + 9))
    assert found is not None and found.version == first["version"]


def test_a_champion_that_was_not_evaluated_is_not_beaten(trained: Shop):
    models.promote(trained.job("rollback").lake, "unknown", day_after(DAYS - 1), "test")
    assert models.newest(trained.job("audit").lake) == "unknown"
    with pytest.raises(NotEnoughDataError, match="unknown was not evaluated on this snapshot: run evaluate_scorer"):
        trained.run("promote_scorer", days=DAYS)


def test_too_few_days_say_what_is_missing(shop: Shop):
    shop.deliver(DAY, [event(1)])
    shop.run(*LAKE_STEPS)
    with pytest.raises(NotEnoughDataError, match=r"no train, valid, test examples as of .*horizon_days"):
        shop.run("build_examples")


def test_a_day_without_a_model_has_the_fallback_alone(shop: Shop):
    shop.deliver(DAY, [event(n, user=f"u{n}") for n in range(6)])
    counts = shop.run(*LAKE_STEPS, "score_candidates")
    assert counts["lists"] == 0 and counts["model"] == "popularity"
    assert {row["user_id"] for row in shop.rows("gold.recommendations")} == {"*"}


def test_the_serving_uri_of_the_environment_has_the_last_word(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "LAKEREC_SERVING_URI", "postgresql://elsewhere/x")
    with serving.target(shop.config) as uri:
        assert uri == "postgresql://elsewhere/x"
