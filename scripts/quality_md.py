"""Write docs/quality.md from benchmarks/quality/results; with --check, exit with code 1 if the file says otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pages import write_or_check

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TARGET = ROOT / "benchmarks" / "quality" / "results", ROOT / "docs" / "quality.md"
TUNED = "gain on the tuning cut"  # of the language model, over the same final order without it
KNOWN = "history known"  # a slice of protocols where some people are new
DEAF = " - final order without language model"
FAR = "recall@100"  # of new targets: no list has them in front
METRICS = ("hr@10", "ndcg@10", "mrr@10", "recall@20")
HEAD = """# Quality

Made from `benchmarks/quality/results` by `make docs`; do not edit it by hand. `make bench-quality` measures it anew
(it needs the data sets, see [benchmarks](../README.md#benchmarks)). Every figure is on the test part, once; settings
were chosen on validation. In brackets the 95 % bootstrap interval over people; of models that are trained by seed the
mean of the seeds. The whole catalogue is ranked, the full history masked unless the protocol says repeats.
Before these runs trials of the retriever had read the test events of ml_latest_small and ml_1m; its settings follow
from validation figures, but on ml_latest_small its size was changed (128 to 64) after such a trial. The test of
ml_latest_small was run twice: before and after the three cuts and three members that the targets five to nine from the
end had chosen (before: ranker .1951 / .1059, refit .2005 / .1075, one retriever). Of online_retail
price and text of an item are those of the whole year, and its catalogue is every item ever sold.
The retrievers of ml_1m were trained on one H200, nine at once, and stopped after 21 or 22 epochs: two cores do 24 in
the half hour that a first training may take. All else ran on two cores.

The tables "language model" say what it adds: a MiniLM that was fine-tuned on the H200 (all weights, softmax over the
slates of 50, 5e-5, at most 4 epochs) on the slates that taught the ranker. "Final order without language model" is the
same second LambdaRank without what it read; the gate of the nightly training keeps a language model where the gain on
the tuning cut, of people out of fold, is above zero and no slice that it guards surely loses there. Where no epoch was
better than the ranker alone, the order is the one without it. "Taught" are students: their loss is 0.5 of the distance
to the model of words. Higher rates (2e-4, 5e-4) changed nothing on ml_1m's validation. These tests were run three
times: the first time the final order's boosters were of the ranker's size, and nothing paid on validation; small ones
were then chosen on it. The second time the ranker beneath had not learned from the tuning cut, as in the nightly
training it now does: above that ranker the history as vectors had gained +.0029 [+.0002, +.0060] on online_retail,
above this one, which is better by .007, nothing. ml_1m's last three forms were not trained the third time.

The tables "without text" take the language model away as a whole: no text vectors in the retriever, in the sources and
in the ranker's features; both trained in the same run, the retrievers on the H200. Of ml_1m it was not made: there text
does not help the retriever (validation loss of three seeds after 18 epochs: 5.325, 5.322, 5.320 with text, 5.326,
5.318, 5.325 without).

![What each form adds, by the tokens of a slate](../benchmarks/quality/results/language_model_cost.png)
"""


def document() -> str:
    """The whole page: a section for each data set and protocol."""
    parts = [section(rows) for file in sorted(RESULTS.glob("*.json")) for rows in tables(file)]
    return "\n".join([HEAD, *parts]).rstrip() + "\n"


def tables(file: Path) -> list[list[dict[str, Any]]]:
    """The rows of a file by protocol."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    names = list(dict.fromkeys(row["protocol"] for row in rows))
    return [[row for row in rows if row["protocol"] == name] for name in names]


def section(rows: list[dict[str, Any]]) -> str:
    """A protocol's models, then its paired gains."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows if isinstance(row["seed"], int)})
    about = f"{first['users']} people, seeds {', '.join(map(str, seeds))}, {first['date']}, commit {first['commit']}"
    told = f"{about}, {first['cores']} cores."
    chosen = {(row["model"], row["metric"]): row for row in rows if row["slice"] == "all" and row["seed"] != "spread"}
    models = list(dict.fromkeys(model for model, _ in chosen))
    known = {row["model"]: row for row in rows if row["slice"] == KNOWN and row["metric"] == "ndcg@10"} or _long(rows)
    heads = [*METRICS, *(["ndcg@10 of people with a history"] if known else [])]
    lines = ["| model | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    lines += [_line(model, chosen, known) for model in models if " - " not in model]
    pairs = [_pair(row) for (model, metric), row in chosen.items() if " - " in model and metric == "ndcg@10"]
    pairs += [_pair(row) for (_, metric), row in chosen.items() if metric == TUNED]
    head = ["", "| paired gain in ndcg@10 | mean | 95 % interval | detectable |", "|---|---|---|---|"] if pairs else []
    read = first["protocol"].endswith(", language model")
    pairs += _by_slice(rows, "" if not read else DEAF) if read or first["protocol"].endswith(", without text") else []
    ceiling = ["", _ceiling(chosen, rows)] if read else []
    return "\n".join([f"## {first['data']}: {first['protocol']}", "", told, "", *lines, *ceiling, *head, *pairs, ""])


def _ceiling(chosen: dict[tuple[str, str], dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """What an order of the slates can find at best: the share of a person's targets that they hold."""
    found = {row["slice"]: row["value"] for row in rows if (row["model"], row["metric"]) == ("ranker", FAR)}
    parts = [f"{value:.4f} of {name}" for name, value in found.items() if name.startswith(("history ", "target "))]
    whole = chosen["ranker", FAR]["value"]
    return f"Recall of the slates of 50, the ceiling of every order of them: {whole:.4f}; by slice {', '.join(parts)}."


def _by_slice(rows: list[dict[str, Any]], beside: str) -> list[str]:
    """Gains over `beside` by people's histories and by targets; over whatever where it is empty, of new targets in FAR.

    Where it is not, both are orders of the same slates: neither finds a new target that the other does not.
    """
    found, everyone = [], rows[0]["users"]
    for row in rows:
        new = row["slice"] == "target new"
        if (row["slice"].startswith("history ") and row["users"] == everyone) or (new and beside):
            continue  # the whole again, or nothing
        wanted = row["metric"] == (FAR if new else "ndcg@10") and row["slice"].startswith(("history ", "target "))
        if wanted and " - " in row["model"] and row["model"].endswith(beside):
            found.append(_pair({**row, "model": f"{row['model']}: {row['slice']}" + f", {FAR}" * new}))
    return found


def _line(model: str, chosen: dict[tuple[str, str], dict[str, Any]], known: dict[str, dict[str, Any]]) -> str:
    rows = [chosen.get((model, metric)) for metric in METRICS] + ([known.get(model)] if known else [])
    return f"| {model} | " + " | ".join(_figure(row) for row in rows) + " |"


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['value']:.4f}" + (f" [{row['low']:.4f}, {row['high']:.4f}]" if "low" in row else "")


def _long(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """NDCG@10 of people with a history, from the slices of short and long ones, where some people have none."""
    mine = [row for row in rows if row["metric"] == "ndcg@10" and row["seed"] in (None, "mean")]
    if not any(row["slice"] == "history new" for row in mine):
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in mine:
        if row["slice"] in ("history short", "history long"):
            found.setdefault(row["model"], []).append(row)
    people = {model: sum(row["users"] for row in each) for model, each in found.items()}
    return {
        model: {"value": sum(row["value"] * row["users"] for row in each) / people[model]}
        for model, each in found.items()
    }


def _pair(row: dict[str, Any]) -> str:
    name = row["model"]
    if row["metric"] == TUNED:
        name += f": {TUNED}, where the gate {'leaves it out: ' + row['doubt'] if row['doubt'] else 'keeps it'}"
    return f"| {name} | {row['value']:+.4f} | [{row['low']:+.4f}, {row['high']:+.4f}] | {row['detectable']:.4f} |"


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, document, __doc__))
