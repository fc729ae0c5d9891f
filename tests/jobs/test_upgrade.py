"""A lake that an older commit of this repository has written, and the night of today's code on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable
from tests.conftest import DAY, LAKE_STEPS, ROOT, SETTINGS, Shop, day_after, event

from lakerec.restore import restore
from train_scorer import examples

# The last commit whose ml.examples had slates, and whose comments of gold.model_metrics were others.
OLD = "7377d0a"
DAYS = 6

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        subprocess.run(["git", "cat-file", "-e", OLD], cwd=ROOT, capture_output=True).returncode != 0,
        reason=f"needs the commit {OLD}: a checkout with its history",
    ),
]


@pytest.fixture(scope="module")
def upgraded(spark, tmp_path_factory) -> Shop:
    """A lake of six days with a training snapshot, written by the old code in a process of its own."""
    shop = Shop(tmp_path_factory.mktemp("upgrade"), spark)
    shop.write("items.csv.gz", "item_id,title", [f"i{n},thing number {n}" for n in range(10)])
    for n in range(DAYS):
        shop.deliver(day_after(n), [event(100 * n + m, user=f"u{m}", day=day_after(n)) for m in range(9)])
    code = shop.folder / "code"
    code.mkdir()
    archive = subprocess.run(["git", "archive", OLD], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(code)], input=archive, check=True)
    (code / ".jars").symlink_to(ROOT / ".jars")
    old = yaml.safe_load(yaml.safe_dump(SETTINGS))
    old["scorer"]["training"] = {"horizon_days": 1, "cuts": 1}
    del old["spark"]  # keys that the former release did not have
    (shop.folder / "old.yaml").write_text(yaml.safe_dump(old))
    command = [sys.executable, "-m", "lakerec.cli", "run", "--config", str(shop.folder / "old.yaml")]
    command += ["--start", str(DAY), "--end", str(day_after(DAYS)), "--train", "always", "--until", "build_examples"]
    done = subprocess.run(
        command,
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code / "jobs"), "LAKEREC_HOME": str(code)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return shop


def test_the_old_lake_is_read_upgraded_run_on_and_restored(upgraded: Shop):
    shop, lake = upgraded, upgraded.folder / "lake"
    tables = [path.parent for path in sorted(lake.glob("*/*/_delta_log"))]
    before = {
        path: (DeltaTable(str(path)).version(), DeltaTable(str(path)).to_pyarrow_table().num_rows) for path in tables
    }
    assert "candidates" in [field.name for field in DeltaTable(str(lake / "ml/examples")).schema().fields]
    snapshots = shop.rows("ml.snapshots")

    shop.deliver(day_after(DAYS), [event(700 + m, user=f"u{m}", day=day_after(DAYS)) for m in range(9)])
    shop.run(*LAKE_STEPS, start=day_after(DAYS))
    (line,) = [row for row in shop.rows("ops.runs") if row["job"] == "migrate"]
    assert "ml.examples" in dict(line["details"])
    assert len(shop.rows("silver.events")) == 9 * (DAYS + 1)
    for path, (version, count) in before.items():
        name = f"{path.parent.name}.{path.name}"
        assert shop.job("audit").lake.read(name, version).count() == count

    shop.run("build_examples", days=DAYS + 1)  # a snapshot of today's form beside the old one
    now = DeltaTable(str(lake / "ml/examples"))
    assert "candidates" not in [field.name for field in now.schema().fields]
    assert len(shop.rows("ml.snapshots")) == len(snapshots) + 1
    assert {row["snapshot_id"] for row in shop.rows("ml.examples")} == {
        row["snapshot_id"] for row in shop.rows("ml.snapshots")
    }
    old = examples(shop.job("train_scorer"), snapshots[0]["snapshot_id"])
    assert len(old) and not old["passed_over"].map(len).any()

    version, count = before[lake / "silver/events"]
    restore(shop.job("restore"), "silver.events", version, None, ())
    assert len(shop.rows("silver.events")) == count
    shutil.rmtree(Path(shop.folder / "code"))
