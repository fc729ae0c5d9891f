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
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # the widest last


def data_folder(name: str) -> Path:
    """A folder of the real data; ends the program with one line where it is missing."""
    folder = Path(os.environ.get("LAKEREC_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.exists():
        raise SystemExit(f"this benchmark needs the real files in {folder} (or name their parent in LAKEREC_DATA)")
    return folder


def circumstances() -> dict[str, Any]:
    """date, commit (with a + where the code was changed behind it), cores, memory_gib, cpu: what every result says."""
    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/*/results").stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {"cores": os.cpu_count(), "memory_gib": round(memory, 1), "cpu": processor()}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": f"{commit}{'+' * bool(changed.strip())}", **machine}


def git(*asked: str) -> subprocess.CompletedProcess[str]:
    """What git answers in the project's folder."""
    return subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, text=True)


def processor() -> str:
    """The processor's name and the widest instructions it has of those that scoring gains from."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = told.get("flags", "").split()
    widest = [name for name in INSTRUCTIONS if name in known][-1:]
    return ", ".join([told.get("model name", platform.machine()), *widest])


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
