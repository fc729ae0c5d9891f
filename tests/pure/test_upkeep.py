"""Which files may go, and which settings of upkeep are refused."""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path

import pytest
import yaml
from tests.conftest import SETTINGS

from lakerec import upkeep
from lakerec.config import RETAINABLE, Config, load_config
from lakerec.errors import ConfigError
from lakerec.sources import BEGINNING

DAY = 86400


def written(place: Path, days_ago: float) -> Path:
    """A file as if it had been written so many days ago."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("x")
    os.utime(place, (time.time() - days_ago * DAY,) * 2)
    return place


def aged(folder: Path, days_ago: float) -> None:
    os.utime(folder, (time.time() - days_ago * DAY,) * 2)


def test_a_folder_is_as_young_as_its_youngest_file(tmp_path: Path):
    for name, ago in {"old": 40, "young": 2, "served": 400}.items():
        written(tmp_path / name / "weights" / "a", ago)
        written(tmp_path / name / "manifest", 500)
        for folder in (tmp_path / name / "weights", tmp_path / name):
            aged(folder, 500)
    written(tmp_path / ".torn.parts", 31)
    idle = upkeep.idle(tmp_path, 30, {"served"})
    assert [place.name for place in idle] == [".torn.parts", "old"]
    assert [place.name for place in upkeep.idle(tmp_path, 41, {"served"})] == []
    upkeep.remove(idle)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["served", "young"]
    assert upkeep.idle(tmp_path / "nothing", 1) == []


def test_what_goes_while_it_is_looked_at_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path / "v1" / "a", 40)
    written(tmp_path / "v1" / "draft", 40)
    aged(tmp_path / "v1", 40)
    listed = [tmp_path / "v1" / name for name in ("a", "draft")]
    listed[1].unlink()
    aged(tmp_path / "v1", 40)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rglob", lambda self, pattern: iter(listed))
        assert upkeep.idle(tmp_path, 30) == [tmp_path / "v1"]
    assert upkeep.touched(tmp_path / "gone") > time.time() - 60


def config(tmp_path: Path, **sections: object) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(SETTINGS | sections))
    return load_config(file)


def test_without_a_word_only_examples_of_trainings_expire(tmp_path: Path):
    given = config(tmp_path)
    end = date(2026, 3, 30)
    expiring = {name: upkeep.kept_from(given, name, end) for name in RETAINABLE}
    assert {name for name, day in expiring.items() if day != BEGINNING} == {"ml.examples"}
    assert upkeep.kept_from(config(tmp_path, retention={"ml.sequences": 29}), "ml.sequences", end) == date(2026, 3, 1)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"retention": {"silver.events": 400}}, r"silver\.events keeps all its days; those that may go are quarantine"),
        ({"retention": {"bronze.events": 400}}, r"bronze\.events keeps all its days"),
        ({"retention": {"ml.sequences": 3}}, r"ml\.sequences: more than 3 days are expected"),
        ({"retention": {"quarantine.events": 0}}, r"quarantine\.events: Input should be greater than"),
        ({"maintenance": {"versions_days": 8, "log_days": 7}}, r"log_days must not be less than versions_days"),
        ({"maintenance": {"vacuum": 1}}, r"maintenance\.vacuum: unknown key"),
    ],
)
def test_what_would_lose_more_than_it_should_is_refused(tmp_path: Path, sections: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, **sections)


def test_versions_go_no_earlier_than_a_training_may_end(tmp_path: Path):
    told = (
        r"config\.yaml, line \d+: maintenance\.versions_days: 2 days are less than .*minutes \(2881\), .*"
        r"versions_days of 3 or more, or training_minutes of 2880 or less"
    )
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, maintenance={"versions_days": 2}, airflow={"training_minutes": 2881})
    with pytest.raises(ConfigError, match=r"versions_days: 1 days are less than airflow.training_minutes \(2880\)"):
        config(tmp_path, maintenance={"versions_days": 1})
    assert config(tmp_path, maintenance={"versions_days": 2}).maintenance.versions_days == 2


def test_every_table_that_may_lose_days_has_a_rule():
    assert set(upkeep.RULES) | {"ml.examples"} == set(RETAINABLE)
