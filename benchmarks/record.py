"""What every benchmark shares: the machine's size, the commit, and the file of the last result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def data_folder(name: str) -> Path:
    """A folder of the real data; ends the program with one line where it is missing."""
    folder = Path(os.environ.get("LAKEREC_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.exists():
        raise SystemExit(f"this benchmark needs the real files in {folder} (or name their parent in LAKEREC_DATA)")
    return folder


def circumstances() -> dict[str, Any]:
    """date, commit, cores, memory_gib, processor: what every result says of itself."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {"cores": os.cpu_count(), "memory_gib": round(memory, 1), "processor": platform.machine()}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit.strip(), **machine}


def yardstick() -> float:
    """Processor seconds of a fixed piece of arithmetic: a machine with neighbours is not as fast at every moment."""
    began, found = time.process_time(), 0
    for n in range(5_000_000):
        found += n * n % 7
    return round(time.process_time() - began, 2)


def keep(kind: str, name: str, figures: dict[str, Any]) -> None:
    """Write benchmarks/<kind>/results/<name>.json and print it."""
    whole = {**circumstances(), **figures}
    file = ROOT / "benchmarks" / kind / "results" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(whole, indent=2) + "\n")
    print(json.dumps(whole, indent=2))
