"""Batch inference in buckets: every user once, what was scored is kept, a bad user stops nobody."""

import threading

import pandas as pd
import pytest
from pyspark.sql import functions as F

from lakerec import batch
from lakerec.errors import ModelError
from lakerec.scoring import bucket_file, bucket_scorer, buckets_in

USERS, BUCKETS = 250, 3


def lists_of(bad=(), calls=None, unsound=()):
    """Two items a user; a bad one breaks the block that holds it, an unsound one's second score is nan."""

    def score(frame):
        if calls is not None:
            with open(calls, "a") as stream:
                stream.writelines(f"{user}\n" for user in frame["user_id"])
        if set(frame["user_id"]) & set(bad):
            raise ValueError("an odd history")
        users = [user for user in frame["user_id"] for _ in range(2)]
        items = ["a", "b"] * len(frame)
        scores = [float("nan") if u in unsound and i == "b" else 0.5 for u, i in zip(users, items, strict=True)]
        return pd.DataFrame({"user_id": users, "item_id": items, "score": scores, "source": "popular"})

    return score


@pytest.fixture
def users(spark):
    return spark.range(USERS).select(F.concat(F.lit("u"), "id").alias("user_id"))


def run(spark, users, place, lines=None, **given):
    place.mkdir(exist_ok=True)
    say = (lambda _: None) if lines is None else lines.append
    return batch.run(spark, users, USERS, BUCKETS, bucket_scorer(lists_of(**given), str(place)), place, say)


def test_every_user_has_their_rows_once_and_the_counts_tell(spark, users, tmp_path):
    found = run(spark, users, tmp_path / "b")
    rows = found.rows.toPandas()
    assert rows.groupby("user_id").size().to_dict() == {f"u{n}": 2 for n in range(USERS)}
    assert dict(found.rows.dtypes) == {"user_id": "string", "item_id": "string", "score": "float", "source": "string"}
    assert (found.users, found.resumed, found.failed) == (USERS, 0, 0)
    assert sum(buckets_in(tmp_path / "b").values()) == USERS


def test_only_what_is_missing_is_scored_again(spark, users, tmp_path):
    place, calls, lines = tmp_path / "b", tmp_path / "calls", []
    before = run(spark, users, place).rows.toPandas()
    (lost, count), *kept = sorted(buckets_in(place).items())
    bucket_file(place, lost, count).unlink()
    (place / ".bucket-9-9.parquet.77").write_bytes(b"half")
    found = run(spark, users, place, lines, calls=str(calls))
    assert found.resumed == sum(count for _, count in kept) and "kept" in lines[0]
    assert len(calls.read_text().split()) == count
    key = ["user_id", "item_id"]
    pd.testing.assert_frame_equal(
        found.rows.toPandas().sort_values(key, ignore_index=True), before.sort_values(key, ignore_index=True)
    )


def test_a_user_who_cannot_be_scored_stops_nobody_else(spark, users, tmp_path):
    lines = []
    found = run(spark, users, tmp_path / "b", lines, bad=("u7",))
    rows = found.rows.toPandas()
    assert set(rows["user_id"]) == {f"u{n}" for n in range(USERS)} - {"u7"} and len(rows) == 2 * (USERS - 1)
    assert found.failed == 1 and batch.counts([found])["failed"] == 1
    assert "1 of 250 users could not be scored, the first: user u7: ValueError: an odd history" in lines[-1]


def test_scores_that_are_no_numbers_are_a_failure_of_their_user(spark, users, tmp_path):
    """Spark holds nan greater than any number: such an item would come first."""
    lines = []
    found = run(spark, users, tmp_path / "b", lines, unsound=("u7",))
    assert {row["user_id"] for row in found.rows.collect()} == {f"u{n}" for n in range(USERS)} - {"u7"}
    assert "1 of 250 users could not be scored, the first: user u7: scores that are no numbers" in lines[-1]
    with pytest.raises(ModelError, match="4 of 250 users could not be scored"):
        run(spark, users, tmp_path / "c", unsound=("u7", "u8", "u9"), bad=("u10",))


def test_many_failures_end_the_run_and_every_run_after_it(spark, users, tmp_path):
    for _ in range(2):
        with pytest.raises(ModelError, match="4 of 250 users could not be scored"):
            run(spark, users, tmp_path / "b", bad=("u1", "u2", "u3", "u4"))
    found = run(spark, users, tmp_path / "b")
    assert found.rows.count() == 2 * USERS and found.failed == 0


def test_the_only_user_may_not_fail(spark, users, tmp_path):
    score = bucket_scorer(lists_of(bad=("u7",)), str(tmp_path))
    with pytest.raises(ModelError, match="1 of 1 users could not be scored"):
        batch.run(spark, users.where("user_id = 'u7'"), 1, 1, score, tmp_path, print)


def test_what_is_wrong_with_the_model_ends_the_run_at_once(spark, users, tmp_path):
    def broken(frame):
        raise ModelError("v7: differs from its hash")

    with pytest.raises(ModelError, match=r"^v7: differs from its hash$"):
        batch.run(spark, users, USERS, BUCKETS, bucket_scorer(broken, str(tmp_path)), tmp_path, print)
    assert not buckets_in(tmp_path)


def test_nobody_is_due(spark, users, tmp_path):
    (tmp_path / "b").mkdir()
    score = bucket_scorer(lists_of(), str(tmp_path / "b"))
    found = batch.run(spark, users.where("false"), 0, 1, score, tmp_path / "b", print)
    assert found.rows.count() == 0 and found.rows.columns == ["user_id", "item_id", "score", "source"]


def test_progress_is_told_while_buckets_end(spark, users, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "EVERY", 0.05)
    lines, seen = [], threading.Event()
    with batch._progress(tmp_path, 10, 0, lambda line: (lines.append(line), seen.set())):
        bucket_file(tmp_path, 0, 4).write_bytes(b"")
        assert seen.wait(5)
    assert lines[0].startswith("4 of 10 users, ") and "min left" in lines[0]


def test_a_workspace_is_kept_where_the_run_fails_and_shared_by_nobody(tmp_path):
    with pytest.raises(RuntimeError), batch.workspace(tmp_path, "day", "run1") as place:
        (place / "bucket-0-3.parquet").write_bytes(b"")
        raise RuntimeError
    with batch.workspace(tmp_path, "day", "run2") as mine:
        assert buckets_in(mine) == {0: 3}
        with batch.workspace(tmp_path, "day", "run3") as other:
            assert other != mine and buckets_in(other) == {}
        assert mine.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_runs_of_the_day_had_from_other_inputs_goes_but_for_those_that_still_run(tmp_path):
    for name in ("2026-03-07-old", "2026-03-08-old"):
        with pytest.raises(RuntimeError), batch.workspace(tmp_path, name, "dead"):
            raise RuntimeError
    with batch.workspace(tmp_path, "2026-03-07-other", "runs") as other:
        with batch.workspace(tmp_path, "2026-03-07-new", "ends"):
            pass
        assert sorted(each.name for each in tmp_path.iterdir()) == [other.name, "2026-03-08-old"]


def test_the_same_users_make_the_same_buckets():
    assert [batch.count_of(users, 2) for users in (0, 99, 250, 5000, 1_000_000)] == [1, 1, 2, 8, 1000]
    assert batch.fingerprint("a", {"b": 1, "c": 2}) == batch.fingerprint("a", {"c": 2, "b": 1})
    assert batch.fingerprint("a", {"b": 1}) != batch.fingerprint("a", {"b": 2})


def test_the_users_of_several_days_add_up():
    one = batch.Scored(None, users=30, resumed=10, failed=1, seconds=4.0)
    other = batch.Scored(None, users=50, resumed=0, failed=0, seconds=6.0)
    assert batch.counts([one, other]) == {"users": 80, "resumed": 10, "failed": 1, "users_per_second": "7.0"}
    assert batch.counts([]) == {}
