"""Slate scoring and fine-tuning beside what a team would use else: `make bench-scoring`, or one of the
works below by `make bench-scoring WORK=cross-encoder`.

Each work runs in a process of its own; both sides are timed in turn on the same made people (`made.py`), after a pass
that starts the workers, loads the model and warms up, and stand with their median of five or more runs in
results/scoring.json, a row on each line, and in a picture beside it; `retrieval.py` has the retriever's rows. --small
tries everything on a few people and keeps nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyspark
from benchmarks.record import ROOT, circumstances
from benchmarks.speed.picture import draw

import lakerec.scorer  # noqa: F401  before torch: it says how OpenMP's threads wait

RESULTS = ROOT / "benchmarks" / "speed" / "results" / "scoring.json"
CORES = 2
KINDS = ("float32", "bfloat16")  # of the cross-encoder: as it comes, and as ours multiplies where a processor can
FORMS = {"history vectors": "the history", "vectors": "history and candidates"}  # what is not told in words
CONTRACT = ("work", "ours", "peer", "peer_version", "ratio", "unit", "cores", "commit")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """How much each work reads: people, candidates of each, tokens of a history; five runs of each side or more."""

    rounds: int = 5
    users: int = 400
    job_users: int = 1200  # of the Spark job beside a plain process: a commit to Delta alone takes two seconds
    candidates: int = 50
    history: int = 160
    real_users: int = 48
    cross_users: int = 16  # the cross-encoder's cost is linear in pairs: a part of the people is enough
    few: int = 500
    half: int = 2750
    many: int = 5000
    short: tuple[int, int] = (8, 32)  # candidates and tokens of history where only growth counts
    tuned: int = 16  # slates trained on
    held: int = 8  # slates validated on
    model: str = "minilm-l6"


SMALL = Sizes(rounds=1, users=8, job_users=8, real_users=4, cross_users=2, few=20, half=110, many=200, tuned=2, held=2)


def paired(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median seconds of each side; every round runs them all in turn."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, run in sides.items():
            times[side].append(run())
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in times.items()), file=sys.stderr)
    return {side: statistics.median(found) for side, found in times.items()}


def row(name: str, work: str, rates: tuple[float, float], version: str, unit: str, **more: Any) -> dict[str, Any]:
    """A line of the table of speeds; the more of `rates` (ours, the peer's) the better."""
    ours, peer = rates
    about = {"name": name, "work": work, "ours": round(ours, 1), "peer": round(peer, 1), "peer_version": version}
    return {**about, "ratio": round(ours / peer, 3), "unit": unit, "cores": CORES, **more}


def spark_job(sizes: Sizes) -> Rows:
    """The whole Spark job beside one process that uses both cores, and once beside two with a core each."""
    from benchmarks.speed import made, passes

    with tempfile.TemporaryDirectory() as folder:
        place, artefact, spark = Path(folder), made.artefact(model=sizes.model), passes.session()
        people = made.people(sizes.job_users, sizes.candidates, sizes.history)
        files = [_file(place, "all", people), _file(place, "even", people[::2]), _file(place, "odd", people[1::2])]
        lists = passes.slate_lists(str(artefact))
        one, two = [passes.Plain(artefact, CORES)], [passes.Plain(artefact, 1) for _ in range(CORES)]
        sides: dict[str, Callable[[], float]] = {
            "spark": lambda: passes.spark_job(spark, files[0], lists, place / "spark"),
            "plain": lambda: passes.Plain.seconds(one, files[:1], place),
        }
        first = {side: run() for side, run in sides.items()}
        found = paired(sizes.rounds, sides)
        found["two processes"] = passes.Plain.seconds(two, files[1:], place)
        for process in one + two:
            process.close()
        spark.stop()
    pairs = sizes.job_users * sizes.candidates
    rates = {side: pairs / seconds for side, seconds in found.items()}
    told = f"the whole Spark job, slates of {_shape(sizes)}, {sizes.job_users:,} users; model loaded"
    more = {
        "goal": 0.9,
        "two_processes_one_run": round(rates["two processes"], 1),
        "ratio_to_two_processes": round(rates["spark"] / rates["two processes"], 2),
        "first_pass_seconds": round(first["spark"], 1),
        "median_seconds": round(found["spark"], 1),
    }
    version = f"lakerec's Predictor in one process, {CORES} threads"
    return [row("spark-job", told, (rates["spark"], rates["plain"]), version, "candidates/s", **more)]


def cross_encoder(sizes: Sizes) -> Rows:
    """The whole Spark job in each form beside a cross-encoder of pairs, as it comes and in bf16."""
    from benchmarks.speed import made, passes

    from lakerec.scorer.base_model import folder

    with tempfile.TemporaryDirectory() as state:
        place, spark = Path(state), passes.session()
        people = made.people(sizes.users, sizes.candidates, sizes.history)
        whole, part = _file(place, "all", people), _file(place, "part", people[: sizes.cross_users])
        forms = {form: passes.slate_lists(str(made.artefact(model=sizes.model, form=form))) for form in made.FORMS}
        tokens = sizes.history + made.CANDIDATE_TOKENS + 3
        udfs = {kind: passes.cross_encoder(str(folder(sizes.model)), kind, tokens) for kind in KINDS}

        def pairwise(kind: str) -> Callable[[], float]:
            return lambda: passes.cross_job(spark, part, udfs[kind], place / kind)

        def slates(form: str) -> Callable[[], float]:
            return lambda: passes.spark_job(spark, whole, forms[form], place / form.replace(" ", "-"))

        sides = {form: slates(form) for form in forms}
        sides |= {kind: pairwise(kind) for kind in KINDS}
        for run in sides.values():
            run()
        found = paired(sizes.rounds, sides)
        spark.stop()
    return cross_rows(sizes, found)


def cross_rows(sizes: Sizes, seconds: dict[str, float]) -> Rows:
    """A row for each form of the slates and precision of the cross-encoder."""
    import sentence_transformers

    pairs = sizes.cross_users * sizes.candidates
    ours = {form: sizes.users * sizes.candidates / seconds[form] for form in seconds.keys() - set(KINDS)}
    told = f"the whole Spark job, slates of {_shape(sizes)}, {sizes.users} users; the peer's rate on {pairs:,} pairs"
    peer = f"sentence-transformers {sentence_transformers.__version__} CrossEncoder.predict in predict_batch_udf"
    versions = {kind: f"{peer}, {kind}, Spark {pyspark.__version__}" for kind in KINDS}
    return [
        row(
            "cross-encoder",
            told if form == "text" else f"{told}; {FORMS[form]} as item vectors",
            (ours[form], pairs / seconds[kind]),
            versions[kind],
            "candidates/s",
            form=form,
            goal=8 if form == "text" else 24,
        )
        for form in seconds
        if form in ours
        for kind in KINDS
    ]


def slates(sizes: Sizes) -> Rows:
    """One process on slates of real people beside CrossEncoder.predict on their pairs, in equal precision."""
    from benchmarks.speed import real

    return [
        found
        for name in real.SETS
        for found in slate_rows(name, real.slates(name, sizes.real_users, sizes.candidates, sizes.history), sizes)
    ]


def slate_rows(name: str, found: list[Any], sizes: Sizes) -> Rows:
    """A row for each precision; the cross-encoder reads the pairs of the first people and sorts them by length."""
    import sentence_transformers
    import torch
    from benchmarks.speed import made, passes, real

    from lakerec.scorer.base_model import folder
    from lakerec.scorer.model import FLOAT32, NARROW
    from lakerec.scorer.prediction import Predictor

    torch.set_num_threads(CORES)
    artefact = made.artefact(model=sizes.model)
    pairs = [(slate.history, text) for slate in found[: sizes.cross_users] for text in slate.texts]
    least = real.ceiling(found)
    told = f"slates of {sizes.candidates} candidates of {len(found)} people of {name}, one process"
    rows = []
    for kind, arithmetic in zip(KINDS, (FLOAT32, NARROW), strict=True):
        ours = Predictor.load(artefact, CORES, arithmetic)
        tokens = sizes.history + made.CANDIDATE_TOKENS + 3
        kinds = {"dtype": getattr(torch, kind)}
        peer = sentence_transformers.CrossEncoder(
            str(folder(sizes.model)), num_labels=1, max_length=tokens, model_kwargs=kinds, device="cpu"
        )
        sides: dict[str, Callable[[], Any]] = {
            "ours": partial(ours.score, found),
            "peer": partial(peer.predict, pairs, batch_size=passes.CROSS_BATCH, show_progress_bar=False),
        }
        for run in sides.values():
            run()
        seconds = paired(sizes.rounds, {side: partial(timed, run) for side, run in sides.items()})
        rates = len(found) * sizes.candidates / seconds["ours"], len(pairs) / seconds["peer"]
        version = f"sentence-transformers {sentence_transformers.__version__} CrossEncoder.predict, {kind}"
        goal = {"goal": round(min(8, 0.8 * least), 1), "ceiling_by_tokens": round(least, 1)}
        rows.append(row("slates", f"{told}, {kind}", rates, version, "candidates/s", precision=kind, **goal))
    return rows


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    began = time.monotonic()
    run()
    return time.monotonic() - began


def scaling(sizes: Sizes) -> Rows:
    """Ten times the users: is the rate the same, and what does a worker hold?"""
    from benchmarks.speed import passes

    spark = passes.session()
    try:
        return scaled(spark, sizes)
    finally:
        spark.stop()


def scaled(spark: Any, sizes: Sizes) -> Rows:
    """`scaling` in a session that stands."""
    from benchmarks.speed import made, passes

    candidates, tokens = sizes.short
    counts = {"few": sizes.few, "half": sizes.half, "many": sizes.many}
    peaks = dict.fromkeys(counts, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lists = passes.slate_lists(str(made.artefact(model=sizes.model)))
        everyone = made.people(sizes.many, candidates, tokens)
        files = {name: _file(place, name, everyone[:count]) for name, count in counts.items()}

        def watched(name: str) -> Callable[[], float]:
            def run() -> float:
                with passes.WorkerMemory() as memory:
                    seconds = passes.spark_job(spark, files[name], lists, place / f"{name}-scores")
                peaks[name] = max(peaks[name], memory.peak)
                return seconds

            return run

        watched("few")()
        peaks["few"] = 0.0
        found = paired(sizes.rounds, {name: watched(name) for name in counts})
    told = f"the whole Spark job on {sizes.many:,} users, {candidates} candidates each, {tokens} tokens of history"
    rates = (sizes.many / found["many"], sizes.few / found["few"])
    more = {**linear(sizes, found), **memory(sizes, peaks)}
    return [row("scaling", told, rates, f"the same job on {sizes.few:,} users", "users/s", **more)]


def linear(sizes: Sizes, seconds: dict[str, float]) -> dict[str, Any]:
    """What a user more costs in the second half beside the first, and what a job costs without any user.

    `seconds_to_linear` has that fixed cost in it: the time beside that of the few times so many more users.
    """
    first = (seconds["half"] - seconds["few"]) / (sizes.half - sizes.few)
    second = (seconds["many"] - seconds["half"]) / (sizes.many - sizes.half)
    slope = (seconds["many"] - seconds["few"]) / (sizes.many - sizes.few)
    return {
        "goal": "growth within 0.9 and 1.1",
        "growth": round(second / first, 3),
        "fixed_seconds": round(seconds["few"] - slope * sizes.few, 2),
        "seconds_to_linear": round(seconds["many"] / seconds["few"] * sizes.few / sizes.many, 3),
    }


def memory(sizes: Sizes, peaks: dict[str, float]) -> dict[str, Any]:
    """The peak of a worker at both sizes, and its slope."""
    slope = (peaks["many"] - peaks["few"]) / (sizes.many - sizes.few) * 1000
    told = {f"worker_peak_mib_{name}": round(peak) for name, peak in peaks.items()}
    return {**told, "worker_mib_per_1000_users": round(slope, 2), "memory_goal": "flat"}


def fine_tuning(sizes: Sizes) -> Rows:
    """Candidates trained on per second beside Trainer's pairs, and the loss that both end at."""
    import torch
    import transformers
    from benchmarks.speed import made, tuning

    torch.set_num_threads(CORES)
    found = made.slates(made.people(sizes.tuned + sizes.held, sizes.candidates, sizes.history, seed=3))
    slates, valid = found[: sizes.tuned], found[sizes.tuned :]
    losses: dict[str, tuning.Tuned] = {}

    def side(name: str) -> Callable[[], float]:
        def run() -> float:
            losses[name] = getattr(tuning, name)(slates, valid, sizes.history, sizes.model, 1)
            return losses[name].seconds

        return run

    seconds = paired(sizes.rounds, {name: side(name) for name in ("ours", "peer")})
    count = sizes.tuned * sizes.candidates
    told = f"fine-tuning in full on {count:,} labelled candidates, slates of {_shape(sizes)}"
    more: dict[str, Any] = {"goal": 4}
    for name, tuned in losses.items():
        more |= {f"{name}_loss_before": round(tuned.before, 4), f"{name}_loss": round(tuned.after, 4)}
    version = f"transformers {transformers.__version__} Trainer on pairs, {tuning.BATCH} a step, same precision"
    rates = (count / seconds["ours"], count / seconds["peer"])
    return [row("fine-tuning", told, rates, version, "candidates/s", **more)]


def retrieval(sizes: Sizes) -> Rows:
    """Those of retrieval.py, where it is."""
    if importlib.util.find_spec("benchmarks.speed.retrieval") is None:
        print("retrieval: benchmarks/speed/retrieval.py is not here, its rows are left out", file=sys.stderr)
        return []
    module = importlib.import_module("benchmarks.speed.retrieval")
    found: Rows = module.rows(part=100, items=5000, users=1000) if sizes is SMALL else module.rows()
    return [{"name": "retrieval", **row} for row in found]


WORKS: dict[str, Callable[[Sizes], Rows]] = {
    "slates": slates,
    "spark-job": spark_job,
    "cross-encoder": cross_encoder,
    "retrieval": retrieval,
    "fine-tuning": fine_tuning,
    "scaling": scaling,
}


def _file(place: Path, name: str, people: Any) -> Path:
    file = place / f"{name}.parquet"
    people.to_parquet(file, index=False)
    return file


def _shape(sizes: Sizes) -> str:
    return f"{sizes.candidates} candidates of 14 tokens behind {sizes.history} of history"


def complete(rows: Rows) -> Rows:
    """Each with its commit, date and machine."""
    about = circumstances()
    return [{**about, **row} for row in rows]


def keep(rows: Rows, file: Path = RESULTS) -> None:
    """Into the file, in the place of the rows of the same works."""
    names = {row["name"] for row in rows}
    old: Rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    order = list(WORKS)
    kept = sorted([row for row in old if row["name"] not in names] + rows, key=lambda row: order.index(row["name"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n", encoding="utf-8")


def apart(name: str, small: bool) -> Rows:
    """A work's rows, made in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.scoring", name, "--inside", *(["--small"] if small else [])]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    found: Rows = json.loads(out.strip().splitlines()[-1])
    return found


def main() -> None:
    """Run the works, print and keep their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", choices=list(WORKS))
    parser.add_argument("--small", action="store_true", help="a few people, one round; nothing is kept")
    parser.add_argument("--inside", action="store_true", help="in this process; the last line is the rows")
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(WORKS[asked.work](SMALL if asked.small else Sizes())))
        return
    for name in [asked.work] if asked.work else list(WORKS):
        rows = complete(apart(name, asked.small))
        for found in rows:
            print(json.dumps(found, indent=2), flush=True)
        if rows and not asked.small:
            keep(rows)
            draw(json.loads(RESULTS.read_text(encoding="utf-8")), RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
