"""The version of the code names its commit, in its own work tree alone."""

import shutil
import subprocess

import pytest

from lakerec import __version__, release


def git(folder, *words):
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    if not shutil.which("git"):
        pytest.skip("no git")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "--quiet", "--message", "m")
    monkeypatch.setattr(release, "PROJECT", tmp_path.resolve())
    monkeypatch.delenv("LAKEREC_COMMIT", raising=False)
    release.code_version.cache_clear()
    yield tmp_path
    release.code_version.cache_clear()


def test_a_work_tree_is_told_by_its_commit_and_whether_it_was_changed(project):
    commit = git(project, "rev-parse", "--short=8", "HEAD")
    assert release.code_version() == f"{__version__}+{commit}"
    (project / "file").write_text("two")
    release.code_version.cache_clear()
    assert release.code_version() == f"{__version__}+{commit}.changed"


def test_code_inside_the_work_tree_of_others_is_the_release_alone(project, monkeypatch):
    (project / "site-packages").mkdir()
    monkeypatch.setattr(release, "PROJECT", project / "site-packages")
    assert release.code_version() == __version__


def test_an_image_names_its_commit(project, monkeypatch):
    monkeypatch.setenv("LAKEREC_COMMIT", "1a2b3c4d")
    assert release.code_version() == f"{__version__}+1a2b3c4d"
