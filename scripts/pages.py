"""A page of docs/ that is made from something else: written, or compared with --check."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def write_or_check(target: Path, document: Callable[[], str], about: str | None) -> int:
    """0 where the page is (now) what `document` says, 1 where --check found it otherwise."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    text = document()
    if check:
        return 0 if target.exists() and target.read_text(encoding="utf-8") == text else 1
    target.write_text(text, encoding="utf-8")
    return 0
