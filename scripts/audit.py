"""Known faults of the pinned packages, by pip-audit and the OSV database.

python scripts/audit.py FILE...     LAKEREC_OSV_URL names a copy of the database's query address, where there is one

Exit code 0: no known fault; 1: there are some; 3: the database did not answer for every package, so nothing is known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FAULTS, UNKNOWN = 1, 3
AUDIT = [str(Path(sys.executable).with_name("pip-audit")), "--no-deps", "--disable-pip", "--progress-spinner", "off"]


def audit(file: Path) -> list[dict[str, Any]] | str:
    """Each pinned package with its known faults (`vulns`), or why that is not known."""
    mirror = os.environ.get("LAKEREC_OSV_URL")
    place = ["--osv-url", mirror] if mirror else []
    command = [*AUDIT, "-f", "json", "-s", "osv", *place, "-r", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
    left = [one["name"] for one in found if "vulns" not in one] or pins(file) - {one["name"] for one in found}
    return f"no answer for {', '.join(sorted(left))}" if left else found


def pins(file: Path) -> set[str]:
    """The names of the packages that a file pins, as an index writes them."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return {line.split("==")[0].split("[")[0].lower().replace("_", "-").replace(".", "-") for line in lines if line}


def report(file: Path, found: list[dict[str, Any]]) -> int:
    """Print a line for each known fault; how many there are."""
    faults = [(one, fault) for one in found for fault in one["vulns"]]
    for one, fault in faults:
        mended = ", ".join(fault.get("fix_versions", [])) or "no release yet"
        print(f"{file.name}: {one['name']} {one['version']}: {fault['id']}, mended by {mended}")
    print(f"{file.name}: {len(found)} packages, {len(faults)} known faults")
    return len(faults)


def main(names: list[str]) -> int:
    """Audit every file; what is not known outweighs what is."""
    codes = {0}
    for file in map(Path, names):
        found = audit(file)
        if isinstance(found, str):
            print(f"{file.name}: NOT AUDITED, the database of faults did not answer: {found[:300]}", file=sys.stderr)
            codes.add(UNKNOWN)
        elif report(file, found):
            codes.add(FAULTS)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
