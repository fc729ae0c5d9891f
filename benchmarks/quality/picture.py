"""A table as a picture: each model's figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

METRICS = ("hr@10", "ndcg@10")
OURS, OTHERS = "#b2182b", "#4d4d4d"


def draw(rows: Sequence[Mapping[str, Any]], published: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """A row of panels for each protocol, a panel for each metric; published figures as dashed lines."""
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    models = [_figures(rows, protocol, METRICS[0]) for protocol in protocols]
    heights = [0.9 + 0.24 * len(found) for found in models]
    figure, grid = pyplot.subplots(
        len(protocols), 2, figsize=(11, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for protocol, axes in zip(protocols, grid, strict=True):
        for metric, axis in zip(METRICS, axes, strict=True):
            _panel(axis, _figures(rows, protocol, metric), metric)
            for known in published.values() if protocol == protocols[0] else ():
                axis.axvline(known[metric], color="#2166ac", linestyle="--", linewidth=1)
        axes[1].set_yticklabels([])
        axes[0].set_title(f"{rows[0]['data']}: {protocol}", loc="left", fontsize=9)
    if published:
        figure.supxlabel("95 % interval over people; dashed: " + ", ".join(published), fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _figures(rows: Sequence[Mapping[str, Any]], protocol: str, metric: str) -> list[Mapping[str, Any]]:
    """The models' rows over all people, means where there are several seeds, the best last."""
    mine = [row for row in rows if (row["protocol"], row["metric"], row["slice"]) == (protocol, metric, "all")]
    found = {row["model"]: row for row in mine if row["seed"] != "spread" and " - " not in row["model"]}
    return list(found.values())  # a later row of a model is the mean of the ones before it


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    for place, row in enumerate(rows):
        colour = OURS if row["model"].startswith(("ranker", "retriever")) else OTHERS
        axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
        axis.plot(row["value"], place, "o", color=colour, markersize=4)
    axis.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(metric, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", linewidth=0.3)
