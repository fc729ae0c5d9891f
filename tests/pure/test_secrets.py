"""No secret in what people read; names that cannot lead out of their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import DAY, SETTINGS, day_after

from lakerec import job, models
from lakerec.config import Config
from lakerec.errors import ConfigError, ConnectionFailedError, ModelError, UsageError
from lakerec.lake import Window
from lakerec.names import as_part
from lakerec.postgres import ensure_database, uri_of
from lakerec.scorer import losses
from lakerec.serving import list_for

SECRET = "tOpsEcret"


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresq://u:{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:x/{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:x@{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:%zz{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:a {SECRET}@127.0.0.1:1/db",
        f"postgresql://{SECRET}/a:b@c@127.0.0.1:1/db",
        f"host=127.0.0.1 pasword={SECRET}",
        f"postgresql://u:{SECRET}@127.0.0.1:{SECRET}/db",
        SECRET,
    ],
)
def test_a_uri_that_libpq_would_quote_is_refused_unseen(uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_URI", uri)
    with pytest.raises(ConfigError, match="SOME_URI holds no URI") as caught:
        uri_of("SOME_URI")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("password", [SECRET, f"%40%2F{SECRET}%3A%25%20", f"a?{SECRET}#"])
def test_a_server_that_is_down_is_told_without_the_password(password: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_URI", f"postgresql://u:{password}@127.0.0.1:1/db")
    for attempt in (lambda uri: list_for(uri, "ann"), lambda uri: ensure_database(uri, "x")):
        with pytest.raises(ConnectionFailedError) as caught:
            attempt(uri_of("SOME_URI"))
        assert SECRET not in str(caught.value) and "127.0.0.1" in str(caught.value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_whatever_the_password_is_no_message_has_it(password: str):
    """Unescaped: what somebody pastes. A password of a letter or two is part of any message."""
    uri = f"postgresql://u:long{password}word@127.0.0.1:1/db"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SOME_URI", uri)
        try:
            psycopg.connect(uri_of("SOME_URI"), connect_timeout=1)
        except (ConfigError, psycopg.Error) as error:
            assert f"long{password}" not in str(error) and f"{password}word" not in str(error)


def test_without_the_variable_there_is_no_uri(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SOME_URI", raising=False)
    assert uri_of("SOME_URI") == ""


@pytest.mark.parametrize("name", ["20260308-1a2b3c4d-5e6f70", "manual__2026-03-02T04:00:00+00:00", "v1.2", "a" * 200])
def test_a_name_is_taken_as_it_is(name: str):
    assert as_part(name, "version") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "../../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "a\nb", "a\\b", "-rf", "a" * 201],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str):
    with pytest.raises(UsageError, match="is no version"):
        as_part(name, "version")


def test_neither_a_version_nor_a_run_nor_a_teacher_leads_out_of_its_folder(tmp_path: Path):
    config = Config.model_validate(SETTINGS | {"lake": str(tmp_path / "lake"), "spark": {}})
    looking: Any = None  # no session: nothing is read, nothing set
    lake = job.start(config, looking, "rollback", Window(DAY, day_after(1))).lake
    assert models.folder(lake, "v1") == tmp_path / "lake" / "_models" / "v1"
    with pytest.raises(UsageError, match=r"'../../x' is no version of a model"):
        models.folder(lake, "../../x")
    with pytest.raises(UsageError, match="is no run id"):
        job.start(config, looking, "rollback", Window(DAY, day_after(1)), "../x")
    planted = tmp_path / "planted" / "manifest.json"
    planted.parent.mkdir()
    planted.write_text("{}")
    with pytest.raises(ModelError, match=r"neither a folder with a manifest\.json nor a version"):
        losses._artefact("../planted", tmp_path / "models")
