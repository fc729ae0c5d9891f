"""The rows of results/scoring.json as a picture: how many times the peer's rate each work reaches, and its goal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

MET, MISSED, OPEN = "#1b7837", "#b2182b", "#4d4d4d"
WIDTH = 95  # characters of a work's line


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A bar for each row on a logarithmic axis, 1 being the peer; a goal that is a number as a mark."""
    figure, axis = pyplot.subplots(figsize=(12, 1.2 + 0.62 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        axis.barh(place, row["ratio"] - 1, left=1, height=0.55, color=_colour(row))
        told = f"{row['ratio']:g} ({row['ours']:,g} {row['unit']}, peer {row['peer']:,g})"
        axis.annotate(
            told, (max(row["ratio"], 1), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
        )
        if (goal := _goal(row)) is not None:
            axis.plot([goal, goal], [place - 0.4, place + 0.4], color="black", linewidth=1.5)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(0.5, 14 * max(row["ratio"] for row in rows))
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(y=0.01)
    told = "times the peer's rate, medians of paired runs; black marks: goals (green: met, red: not, grey: none)"
    axis.set_xlabel(told, fontsize=8)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def _goal(row: Mapping[str, Any]) -> float | None:
    goal = row.get("goal")
    return float(goal) if isinstance(goal, (int, float)) else None


def _colour(row: Mapping[str, Any]) -> str:
    goal = _goal(row)
    if goal is None:
        return OPEN
    return MET if row["ratio"] >= goal else MISSED


def _name(row: Mapping[str, Any]) -> str:
    return "\n".join(textwrap.wrap(row["work"], WIDTH) + textwrap.wrap(f"beside {row['peer_version']}", WIDTH))
