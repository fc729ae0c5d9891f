"""A Spark job's fixed cost: from the start of Python to the first committed write of a tiny Delta table.

With the fast-start flags and the class-data archive, and beside it a session with Spark's defaults. Goal: 12 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import keep

ROUNDS = 3
PROGRAM = """
import sys, tempfile
from lakerec.config import Config
from lakerec.session import build_session
source = {"path": "x", "columns": dict.fromkeys(("event_id", "user_id", "item_id", "event_type", "event_time"), "x")}
config = Config.model_validate({"lake": "x", "sources": {"events": source}, "event_types": {"x": 1},
                                "spark": {"fast_start": sys.argv[1] == "fast"}})
spark = build_session(config, "start")
with tempfile.TemporaryDirectory() as folder:
    spark.range(10).write.format("delta").save(folder + "/table")
    print("written", flush=True)
"""


def seconds(kind: str) -> float:
    """Wall time from the start of the process to the line it prints after its commit."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "written":
        pass
    took = time.monotonic() - began
    process.wait()
    return took


def main() -> None:
    """Both in turn; medians."""
    times: dict[str, list[float]] = {"fast": [], "default": []}
    for _ in range(ROUNDS):
        for kind, found in times.items():
            found.append(seconds(kind))
    medians = {f"{kind}_seconds": round(statistics.median(found), 1) for kind, found in times.items()}
    keep("speed", "start", {**medians, "goal_seconds": 12, "rounds": ROUNDS})


if __name__ == "__main__":
    main()
