"""Which code runs: the release, and the commit where it comes from a Git work tree or an image that names its own."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from lakerec import __version__

PROJECT = Path(__file__).resolve().parents[2]


@cache
def code_version() -> str:
    """Such as 0.1.0+1a2b3c4d; `.changed` behind it where tracked files differ from the commit; else the release alone.

    An image has no work tree: its commit is in the environment variable LAKEREC_COMMIT.
    """
    commit = os.environ.get("LAKEREC_COMMIT") or _commit()
    return f"{__version__}+{commit}" if commit else __version__


def _commit() -> str:
    # A package installed in somebody else's work tree is not of their commit.
    if _git("rev-parse", "--show-toplevel") != str(PROJECT):
        return ""
    same = _git("status", "--porcelain", "--untracked-files=no") == ""
    return f"{_git('rev-parse', '--short=8', 'HEAD')}{'' if same else '.changed'}"


def _git(*words: str) -> str | None:
    """What git says; None where there is no git, or where it refuses a work tree of another user's."""
    command = ["git", "--no-optional-locks", "-C", str(PROJECT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
