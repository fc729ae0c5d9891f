"""Where a slate's time goes on one thread, and how near that is to what the processor multiplies.

    .venv/bin/python -m benchmarks.speed.slate_profile [--arithmetic int8] [--slates 24]

Seconds are the process's own CPU seconds: another process on the machine disturbs them less than the clock. The
products are counted for the tokens that are needed: no padding, and attention only from a token to the history and to
its own candidate. Beside them the rate of plain products of the model's shapes and of a large square one, and the time
of the same slates under a block mask.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from benchmarks.record import circumstances
from benchmarks.speed import made
from torch.profiler import ProfilerActivity, profile

from lakerec.scorer.model import FLOAT32, INT8, NARROW
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.slates import Pack, Packer, Slate

CANDIDATES, HISTORY, SQUARE = 50, 160, 2048
REPEATS = 5
# Names of torch's operators by what they do; the first that fits.
PARTS = {
    "matrix products": ("addmm", "mm", "bmm", "matmul", "linear", "mkldnn", "quantized"),
    "attention": ("attention",),
    "GELU": ("gelu",),
    "layer norm, sums": ("layer_norm", "aten::add", "aten::mul", "aten::sum"),
    "conversions and copies": ("_to_copy", "copy_", "clone", "contiguous", "aten::to"),
}
OTHER = "rest: masks, embeddings, small operators, Python"


def cpu_seconds(work: Callable[[], Any]) -> float:
    """The median of REPEATS runs after one to warm up."""
    work()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return float(np.median(found))


def products(config: Any, pack: Pack) -> tuple[float, float]:
    """FLOPs (a product and a sum are two) of a pack's linear layers and of its attention, of needed tokens only."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = np.bincount(pack.owners).astype(float)
    history, others = lengths[0], lengths[1:]
    seen = history**2 + float((others * (history + others)).sum())
    linear = 2.0 * len(pack) * (4 * width**2 + 2 * width * inner) * layers
    return linear, 4.0 * seen * width * layers


def multiplied(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """GFLOP per CPU second of (m, k) by a layer's weight (n, k)."""
    m, k, n = shape
    left, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    times = max(1, int(4e9 / (2 * m * k * n)))
    with torch.inference_mode():
        took = cpu_seconds(lambda: [torch.nn.functional.linear(left, weight) for _ in range(times)])
    return 2 * m * k * n * times / took / 1e9


def rates(config: Any, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of products: square, and of the three shapes of a layer on so many tokens."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "square": (SQUARE, SQUARE, SQUARE),
        "projection": (tokens, width, width),
        "up": (tokens, width, inner),
        "down": (tokens, inner, width),
    }
    return {name: round(multiplied(shape, dtype)) for name, shape in shapes.items()}


def masked(model: Predictor, slates: Sequence[Slate]) -> float:
    """CPU seconds of the same scoring with attention under a block mask, a long slate cut in two."""
    assert model.model is not None and model.packer is not None
    other = copy.copy(model)
    other.model, other.packer = copy.copy(model.model), Packer.of(model.packer.tokenizer, model.packer.form)
    other.model.in_pieces = False
    return cpu_seconds(lambda: other.score(slates))


def shares(model: Predictor, slates: Sequence[Slate]) -> dict[str, float]:
    """The share of each part in the CPU time of scoring: self time of operators; the rest is outside of them."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.process_time()
        model.score(slates)
        took = time.process_time() - began
    seconds = dict.fromkeys([*PARTS, OTHER], 0.0)
    for event in found.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), OTHER)
        seconds[part] += event.self_cpu_time_total / 1e6
    inside = sum(seconds.values())
    seconds[OTHER] += max(0.0, took - inside)
    whole = sum(seconds.values())
    return {part: round(value / whole, 3) for part, value in seconds.items()}


def measured(arithmetic: str, count: int) -> dict[str, Any]:
    """Everything, as one row."""
    torch.set_num_threads(1)
    model = Predictor.load(made.artefact(), 1, arithmetic)
    assert model.model is not None and model.packer is not None
    slates = made.slates(made.people(count, CANDIDATES, HISTORY))
    packs = model.packer.pack(slates)
    config = model.model.encoder.config
    linear, attended = map(sum, zip(*(products(config, pack) for pack in packs), strict=True))
    took = cpu_seconds(lambda: model.score(slates))
    packer = model.packer
    packed = cpu_seconds(lambda: packer.pack(slates))
    tokens = sum(map(len, packs))
    dtype = model.model.dtype  # of int8 what goes in between the products, and what they are compared with
    longest = max(packs, key=len)
    found = rates(config, len(longest), dtype)
    return {
        **circumstances(),
        "precision": INT8 if arithmetic == INT8 else str(dtype).removeprefix("torch."),
        "slates": count,
        "tokens_per_slate": round(tokens / count),
        "gflop_per_slate": round((linear + attended) / count / 1e9, 2),
        "attention_share_of_gflop": round(attended / (linear + attended), 3),
        "cpu_ms_per_slate": round(took / count * 1e3, 1),
        "tokenise_ms_per_slate": round(packed / count * 1e3, 2),
        "candidates_per_cpu_second": round(CANDIDATES * count / took),
        "tokens_per_cpu_second": round(tokens / took),
        "gflops": round((linear + attended) / took / 1e9),
        "gflops_of_products": found,
        "part_of_square": round((linear + attended) / took / 1e9 / found["square"], 3),
        "longest_pack_tokens": len(longest),
        "masked_cpu_ms_per_slate": round(masked(model, slates) / count * 1e3, 1),
        "shares": shares(model, slates),
    }


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arithmetic", choices=(NARROW, FLOAT32, INT8), default=NARROW)
    parser.add_argument("--slates", type=int, default=24)
    asked = parser.parse_args()
    print(json.dumps(measured(asked.arithmetic, asked.slates), indent=2))


if __name__ == "__main__":
    main()
