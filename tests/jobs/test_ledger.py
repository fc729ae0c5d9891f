"""What ran, and all that it takes to make a run's rows again."""

import json
import time
from pathlib import Path

import pytest
from tests.conftest import DAY, SHORT_LIVED, Shop, day_after, event

from lakerec.config import load_config
from lakerec.errors import ConflictError, LakeBusyError, ModelError, SourceError, UsageError
from lakerec.job import body, done
from lakerec.lake import held
from lakerec.ledger import show_run, show_runs
from lakerec.release import code_version
from lakerec.tables import sql_text

STEPS = ("ingest_events", "ingest_catalogue", "conform_events")


@pytest.fixture
def ran(shop: Shop) -> Shop:
    shop.deliver(DAY, [event(n) for n in range(5)])
    shop.run(*STEPS)
    return shop


def run_of(shop: Shop, job: str) -> str:
    return next(row["run_id"] for row in shop.rows("ops.runs") if row["job"] == job)


def test_the_newest_runs_come_first(ran, capsys):
    show_runs(ran.config, ran.spark, None, 20)
    told = capsys.readouterr().out
    assert all(run_of(ran, job) in told for job in STEPS)
    assert [line.split("│")[2].strip() for line in told.splitlines() if "│ ok" in line] == list(reversed(STEPS))
    show_runs(ran.config, ran.spark, "conform_events", 1)
    told = capsys.readouterr().out
    assert run_of(ran, "conform_events") in told and run_of(ran, "ingest_events") not in told


def test_the_view_of_runs_has_code_settings_versions_and_model(ran):
    ran.run("conform_catalogue", "build_sequences", "score_candidates")
    ledger = ran.job("look").lake.read("ops.runs")
    view = {row["job"]: row for row in ran.spark.sql(sql_text("views", "runs"), runs=ledger).collect()}
    told = view["score_candidates"]
    assert told["inputs"]["ml.sequences"] == ran.version("ml.sequences") and told["model"] == "popularity"
    assert told["outputs"] == {"gold.recommendations": ran.version("gold.recommendations")}
    assert (told["code_version"], told["config_hash"]) == (code_version(), ran.config.hash())
    assert view["conform_events"]["model"] is None and view["conform_events"]["rows_written"] == 5


def test_a_run_tells_its_versions_and_who_wrote_what_it_read(ran, capsys):
    show_run(ran.config, ran.spark, run_of(ran, "conform_events"))
    told = capsys.readouterr().out
    (row,) = [row for row in ran.rows("ops.runs") if row["job"] == "conform_events"]
    assert row["config_hash"] in told and f"lakerec {row['code_version']}" in told
    assert row["code_version"] == code_version()
    assert f"  {DAY}  read 5, written 5, quarantined 0" in told
    assert f"bronze.events               version 0  by {run_of(ran, 'ingest_events')}" in told
    assert any(line.startswith("  silver.events ") for line in told.split("wrote")[1].splitlines())


def test_a_run_that_scored_each_day_says_so_and_names_its_model_once(ran, capsys):
    ran.run("conform_catalogue", "build_sequences")
    ran.run("score_candidates", every_day=True)
    capsys.readouterr()
    show_run(ran.config, ran.spark, run_of(ran, "score_candidates"))
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("model ")] == ["model    popularity"]
    assert f"jobs/score_candidates.py --config {ran.config.file}" in told
    assert f"--start {DAY} --end {day_after(1)} --every-day" in told


def test_what_a_run_read_can_be_read_again_after_the_table_moved_on(ran, capsys):
    first = run_of(ran, "conform_events")
    ran.deliver(DAY, [event(n) for n in range(9)])
    ran.run(*STEPS)
    show_run(ran.config, ran.spark, first)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "VERSION AS OF" in line]
    (bronze,) = [line for line in lines if "bronze/events`" in line]
    assert ran.spark.sql(bronze).count() == 5


@pytest.mark.long
def test_what_the_upkeep_has_removed_is_said_to_be_gone_and_the_step_runs_again(ran, capsys):
    first = run_of(ran, "conform_events")
    ran.deliver(DAY, [event(n) for n in range(9)])
    ran.run(*STEPS)
    ran.settings |= SHORT_LIVED
    time.sleep(1)
    ran.run("maintain_lake")
    show_run(ran.config, ran.spark, first)
    told = capsys.readouterr().out
    assert "bronze.events version 0 is gone" in told and "bronze/events` VERSION AS OF" not in told
    (command,) = [line.strip() for line in told.splitlines() if "jobs/conform_events.py" in line]
    assert command.endswith(f"--start {DAY} --end {day_after(1)}")
    assert "other settings than its own" in told


def test_the_settings_of_a_run_make_the_same_run_again(ran, capsys, tmp_path):
    show_run(ran.config, ran.spark, run_of(ran, "conform_events"))
    kept = Path(capsys.readouterr().out.split("its settings")[1].strip())
    (row,) = [row for row in ran.rows("ops.runs") if row["job"] == "conform_events"]
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(json.loads(kept.read_text()) | {"lake": "lake"}))
    assert load_config(again).hash() == kept.stem == row["config_hash"]
    kept.write_text(kept.read_text()[:20])  # a run was killed here
    ran.run("ingest_events")
    assert json.loads(kept.read_text())


def test_an_unknown_run_and_an_empty_lake_are_named(ran, tmp_path):
    with pytest.raises(UsageError, match="knows no run 'nobody'"):
        show_run(ran.config, ran.spark, "nobody")
    with pytest.raises(UsageError, match="no run of a job 'conform'; it has those of conform_events, ingest_cat"):
        show_runs(ran.config, ran.spark, "conform", 5)
    ran.settings["lake"] = "elsewhere"
    with pytest.raises(UsageError, match="no run was recorded"):
        show_runs(ran.config, ran.spark, None, 5)


def test_a_run_that_an_error_ended_is_in_the_ledger_with_its_cause(ran, capsys):
    ran.deliver(day_after(1), ["1,2"], header="event_id,user_id")
    job = ran.job("ingest_events", day_after(1))
    with pytest.raises(SourceError):
        done(job, body("ingest_events"))
    (row,) = [row for row in ran.rows("ops.runs") if row["run_id"] == job.run.run_id]
    assert (row["status"], row["outputs"], dict(row["details"])["error"]) == ("failed", [], "SourceError")
    show_run(ran.config, ran.spark, job.run.run_id)
    assert f"{day_after(1)}.csv.gz" in capsys.readouterr().out
    show_runs(ran.config, ran.spark, "ingest_events", 1)
    assert "failed" in capsys.readouterr().out


def test_a_run_that_failed_on_its_way_says_how_far_it_was(ran):
    def scores(job):
        with job.telling("progress") as tell:
            tell("1000 of 4000 users, 40.0 users/s, 1.2 min left")
        with job.telling("progress") as tell:
            for thousands in (1, 2):
                tell(f"{thousands}000 of 3000 users, 50.0 users/s, 0.5 min left")
            raise ModelError("31 of 3000 users could not be scored")

    job = ran.job("score_candidates")
    with pytest.raises(ModelError):
        done(job, scores)
    (row,) = [row for row in ran.rows("ops.runs") if row["run_id"] == job.run.run_id]
    assert dict(row["details"])["progress"].startswith("2000 of 3000 users")
    with job.telling("progress") as tell:
        tell("3000 of 3000 users")
    assert not job.run.notes  # of a scoring that ended there are counts


def test_what_has_told_its_end_itself_and_what_has_no_ledger_or_no_lease_adds_nothing(ran):
    rejected = ran.job("conform_events")
    rejected.lake.record([rejected.run.row("rejected", {"read": 1})])
    before = ran.version("ops.runs")
    rejected.lake.record_stop("failed", {})
    with held(ran.config, "another", "run"), pytest.raises(LakeBusyError):
        ran.job("conform_events").lake.record_stop("failed", {})
    assert ran.version("ops.runs") == before
    ran.settings["lake"] = "a-slip-of-the-pen"
    ran.job("conform_events").lake.record_stop("failed", {})
    assert not (ran.folder / "a-slip-of-the-pen" / "ops").exists()


def test_a_run_that_failed_behind_its_commit_is_still_completed_by_the_next(ran, monkeypatch):
    def fails(_):
        raise ConflictError("another program")

    job = ran.job("conform_events")
    with monkeypatch.context() as patched, pytest.raises(ConflictError):
        patched.setattr(job.lake, "record", fails)
        done(job, body("conform_events"))
    job.lake.record_stop("failed", {"error": "ConflictError"})
    ran.run("conform_events")
    mine = {row["status"]: row for row in ran.rows("ops.runs") if row["run_id"] == job.run.run_id}
    assert mine.keys() == {"failed", "ok"} and mine["ok"]["rows_written"] == 5
    view = ran.spark.sql(sql_text("views", "runs"), runs=ran.job("look").lake.read("ops.runs"))
    assert [row["status"] for row in view.where(f"run_id = '{job.run.run_id}'").collect()] == ["ok"]
