"""The documents tell the truth: tables, commands, errors, configurations; and no file names a machine or a registry."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lakerec import cli
from lakerec.config import load_config
from lakerec.errors import leaves

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/adding-a-source.md",
    "docs/language-model.md",
    "docs/operations.md",
    "docs/security.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Cut in two, so that this file does not break its own rule.
FORBIDDEN = [
    r"(?<!no-emit-)index" + "-url",
    "pypi" + r"\.org",
    "python" + r"hosted\.org",
    "download.py" + r"torch\.org",
    "repo1.mav" + r"en\.org",
    r"(?<![\w.}/*-])/(?:wo" + "rk|ho" + "me|Us" + r"ers|ro" + r"ot)/\w",
]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(name: str) -> str:
    """Only what a document shows as code: fenced blocks and spans in backticks, with broken lines joined."""
    whole = text(name)
    blocks = "\n".join(found.group(2) for found in FENCE.finditer(whole))
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", whole))
    return blocks + "\n" + "\n".join(" ".join(span.split()) for span in spans)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("page", ["tables", "quality"])
def test_a_made_page_says_what_it_was_made_from(page: str) -> None:
    made = subprocess.run([sys.executable, f"scripts/{page}_md.py", "--check"], cwd=ROOT)
    assert made.returncode == 0, f"docs/{page}.md is out of date: run make docs"


@pytest.mark.parametrize("name", GUIDES)
def test_every_make_target_exists(name: str) -> None:
    used = set(re.findall(r"\bmake ([a-z][a-z-]*)", code(name)))
    assert used
    assert used <= targets()


def test_every_command_and_option_exists() -> None:
    lines = [line for name in GUIDES for line in re.findall(r"\blakerec ([a-z][a-z-]*)(.*)", code(name))]
    assert {command for command, _ in lines} >= {"run", "simulate", "recommend", "metrics", "rollback"}
    known = commands()
    for command, rest in lines:
        assert command in known
        assert set(re.findall(r"--[a-z-]+", rest)) <= set(known[command]._option_string_actions)


def test_every_file_named_by_the_guides_exists() -> None:
    for name in GUIDES:
        links = re.findall(r"\]\(([^)#:]+)\)", text(name))
        named = re.findall(r"\b(?:scripts|conf|docs|expectations)/[\w./-]+\.(?:sh|py|md|yaml)\b", text(name))
        made_up = {"conf/shop.yaml"}
        places = [(ROOT / name).parent / link for link in links] + [ROOT / n for n in named if n not in made_up]
        assert places
        assert [str(place) for place in places if not place.exists()] == []


def test_every_error_has_a_section_with_its_exit_code() -> None:
    parts = re.split(r"^## (\w+)\n\n", text("docs/operations.md"), flags=re.MULTILINE)
    sections = {name: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name.endswith("Error")}
    assert set(sections) == {leaf.__name__ for leaf in leaves()}
    for leaf in leaves():
        assert sections[leaf.__name__].startswith(f"Exit code {leaf.exit_code}"), leaf.__name__
        assert ("retried" in sections[leaf.__name__].split(".")[0]) == leaf.retry, leaf.__name__


@pytest.mark.parametrize("name", ["README.md", "docs/adding-a-source.md"])
def test_every_yaml_shown_is_a_configuration(name: str, tmp_path: Path) -> None:
    shown = [found.group(2) for found in FENCE.finditer(text(name)) if found.group(1) == "yaml"]
    assert shown
    for number, block in enumerate(shown):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        assert load_config(file).event_types


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout: git says which files are the project's")
def test_no_file_of_the_project_names_a_registry_or_a_path_of_a_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    found = [hit for file in files if file.is_file() for hit in offences(file)]
    assert found == []


def offences(file: Path) -> list[str]:
    lines = file.read_bytes().decode("utf-8", "replace").splitlines()
    rules = [re.compile(rule) for rule in FORBIDDEN]
    hits = [(n, line) for n, line in enumerate(lines, 1) if any(rule.search(line) for rule in rules)]
    return [f"{file.relative_to(ROOT)}:{n}: {line.strip()[:80]}" for n, line in hits]


@pytest.mark.parametrize(
    "line",
    ["--extra-index" + "-url x", "see https://py" + "pi.org/simple", "cd /wo" + "rk/x", "path: '/ho" + "me/ann/lake'"],
)
def test_the_rule_finds_what_it_forbids(line: str) -> None:
    assert any(re.search(rule, line) for rule in FORBIDDEN)
