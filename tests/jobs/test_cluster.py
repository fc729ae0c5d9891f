"""Scoring away from the driver's process: the same lists from executors of their own, and after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyspark
import pytest
from tests.conftest import LAKE_STEPS, ROOT, Shop, day_after, event

pytestmark = pytest.mark.long
DAYS, PEOPLE = 6, 240  # two buckets on one core
CLUSTER = "local-cluster[2,1,1024]"


@pytest.fixture(scope="module")
def trained(spark, tmp_path_factory) -> Shop:
    """Six days, a promoted model whose language model reads, no lists yet."""
    shop = Shop(tmp_path_factory.mktemp("cluster"), spark)
    shop.settings["scorer"]["language_model"] = "always"
    shop.settings["scorer"]["training"]["targets"] = ["purchase"]
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        told = enumerate(f"u{m}" for m in range(PEOPLE))
        rows = [event(1000 * n + m, user=user, day=day_after(n), item=f"i{m % 3}", kind="purchase") for m, user in told]
        shop.deliver(day_after(n), rows)
    steps = ("embed_items", "build_patterns", "build_examples", "train_scorer", "evaluate_scorer", "promote_scorer")
    shop.run(*LAKE_STEPS, *steps, days=DAYS)
    return shop


def copied(shop: Shop, place: Path, master: str) -> Shop:
    """The shop in a folder of its own, for a session with a master of its own."""
    shutil.copytree(shop.folder, place)
    settings = shop.settings | {"spark": {"master": master, "driver_memory": "2g"}}
    return Shop(place, shop.spark, settings)


def scoring(shop: Shop) -> subprocess.Popen:
    """The job as a process and its children as a group."""
    assert shop.config
    window = ["--start", str(day_after(0)), "--end", str(day_after(DAYS))]
    command = [sys.executable, str(ROOT / "jobs/score_candidates.py"), "--config", str(shop.folder / "config.yaml")]
    known = {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}
    output = (shop.folder / "out.txt").open("w")
    return subprocess.Popen(
        [*command, *window], stdout=output, stderr=subprocess.STDOUT, env=known, start_new_session=True
    )


def lists(shop: Shop) -> list[tuple]:
    """The rows but for what names the run; scores as far as they do not depend on the company."""
    rows = shop.rows("gold.recommendations")
    return sorted((r["user_id"], r["rank"], r["item_id"], r["source"], round(r["score"], 5)) for r in rows)


def told(shop: Shop) -> str:
    return (shop.folder / "out.txt").read_text()


def test_executors_of_their_own_give_the_same_lists_also_after_a_kill(trained: Shop, tmp_path: Path):
    trained.run("score_candidates", days=DAYS)
    wanted = lists(trained)
    assert len({user for user, *_ in wanted}) == PEOPLE + 1

    killed = copied(trained, tmp_path / "killed", "local[1]")
    shutil.rmtree(killed.folder / "lake/gold/recommendations")
    process, until = scoring(killed), time.time() + 240
    while not list((killed.folder / "lake/_scoring").glob("*/bucket-*.parquet")):
        assert process.poll() is None and time.time() < until, told(killed)
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert killed.rows("gold.recommendations") == []
    again = scoring(killed)
    assert again.wait(300) == 0, told(killed)
    assert "were scored by a run that did not end: their lists are kept" in told(killed)
    assert lists(killed) == wanted and not list((killed.folder / "lake/_scoring").iterdir())

    spread = copied(trained, tmp_path / "spread", CLUSTER)
    shutil.rmtree(spread.folder / "lake/gold/recommendations")
    try:
        assert scoring(spread).wait(400) == 0, told(spread)
    finally:
        shutil.rmtree(Path(pyspark.__file__).parent / "work", ignore_errors=True)
    assert lists(spread) == wanted
