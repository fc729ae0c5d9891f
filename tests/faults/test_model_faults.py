"""Models, checkpoints, the registry are missing or damaged: lists stay, the message names the file, a run goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stages import DAYS, NEXT, state
from tests.conftest import Shop, Start, day_after
from tests.processes import ended

from lakerec import models
from lakerec.errors import ModelError

pytestmark = pytest.mark.faults
Before = Callable[..., Shop]


def artefact(shop: Shop) -> Path:
    (found,) = shop.folder.glob("lake/_models/2*")
    return found


def missing(file: Path) -> None:
    file.unlink()


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def other(file: Path) -> None:
    """As long as before, with another hash."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [missing, truncated, other])
def test_lists_are_not_written_from_a_damaged_model_and_the_message_names_the_file(damage, before: Before):
    shop = before("publish_recommendations")
    kinds = ("manifest.json", "model.safetensors", "head.safetensors", "recommender/recipe.json")
    parts = ("items.json", "booster-0.txt", "serving/ease.npz", "retriever-serving-0/*.safetensors")
    files = [artefact(shop) / kind for kind in kinds]
    files += [next((artefact(shop) / "recommender").glob(part)) for part in parts]
    kept, lists = state(shop, "gold.recommendations"), shop.version("gold.recommendations")
    for file in files:
        whole = file.read_bytes()
        damage(file)
        if file.name == "manifest.json" and damage is other:
            file.write_bytes(whole.replace(b'"files": {', b'"files": {"nothing": "0", '))
        with pytest.raises(ModelError) as caught:
            shop.run("score_candidates", days=DAYS)
        assert str(file if file.name != "manifest.json" else artefact(shop)) in str(caught.value)
        file.write_bytes(whole)
    assert shop.version("gold.recommendations") == lists
    shop.run("score_candidates", days=DAYS)
    assert state(shop, "gold.recommendations") == kept


def test_a_training_does_not_go_on_from_a_damaged_champion(before: Before, capsys):
    shop = before("score_candidates")
    champion = artefact(shop)
    truncated(next(champion.glob("recommender/retriever-learned-0/*.safetensors")))
    shop.settings["scorer"]["training"]["seed"] = 5  # another version
    assert shop.run("train_scorer", days=DAYS)["version"] != champion.name
    assert "the training starts afresh" in capsys.readouterr().out


@contextmanager
def gone(database: Path) -> Iterator[None]:
    database.unlink()
    yield


@contextmanager
def garbage(database: Path) -> Iterator[None]:
    database.write_bytes(b"no database" * 1000)
    yield


@contextmanager
def locked(database: Path) -> Iterator[None]:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("begin exclusive")
    yield
    connection.close()


@contextmanager
def read_only(database: Path) -> Iterator[None]:
    """The folder is a mount that takes no writes."""
    place = str(database.parent)
    done = subprocess.run(["mount", "-o", "bind,ro", place, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this process may not mount: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("fault", [gone, garbage, locked, read_only])
def test_a_registry_that_cannot_be_written_stops_no_promotion(fault, before: Before, start: Start, capsys):
    shop = before("promote_scorer")
    with fault(shop.folder / "lake" / "_mlflow" / "mlflow.db"):
        assert shop.run("promote_scorer", days=DAYS)["promoted"]
    told = capsys.readouterr().out
    assert ("MLflow was not written" in told) == (fault is not gone)
    assert models.serving(shop.job("audit").lake, day_after(DAYS - 1)).version == artefact(shop).name
    if fault is garbage:
        (shop.folder / "lake" / "_mlflow" / "mlflow.db").unlink()
    # Once it can be, the next run writes it: a process of its own, as SQLite's of this one stays read-only.
    assert "MLflow was not written" not in ended(start, shop, "promote_scorer", DAYS)
    assert len(shop.rows("ml.promotions")) == 1


def test_a_broken_registry_stops_no_training_and_a_run_behind_it_is_recorded(before: Before, capsys):
    shop = before("train_scorer")
    database = shop.folder / "lake" / "_mlflow" / "mlflow.db"
    database.parent.mkdir(exist_ok=True)
    with garbage(database):
        version = shop.run("train_scorer", days=DAYS)["version"]
    assert "MLflow was not written" in capsys.readouterr().out
    assert shop.run("train_scorer", days=DAYS) == {"version": version, "already": "trained"}
    assert [row["status"] for row in shop.rows("ops.runs") if row["job"] == "train_scorer"] == ["ok", "ok"]


def test_a_damaged_checkpoint_is_told_and_the_training_starts_anew(before: Before, stages, capsys):
    shop = before("train_scorer")
    quiet = artefact(Shop(stages[NEXT["train_scorer"]], shop.spark))
    place = shop.folder / "lake" / "_models"
    place.mkdir(exist_ok=True)
    (place / f".{quiet.name}.checkpoint").write_bytes(b"\x10" * 1000)
    parts = place / f".{quiet.name}.parts"
    parts.mkdir()
    shutil.copy(quiet / "head.safetensors", parts / "retriever-learned-0.checkpoint")
    shop.run("train_scorer", days=DAYS)
    told = capsys.readouterr().out
    assert "cannot be read" in told and "is of another training" in told
    assert [folder.name for folder in place.iterdir()] == [quiet.name]
    assert (artefact(shop) / "manifest.json").read_bytes() == (quiet / "manifest.json").read_bytes()
