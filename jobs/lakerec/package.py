"""The package as a zip for spark-submit: executors import it from there and need no checkout of the project."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent
BEGINNING = (1980, 1, 1, 0, 0, 0)  # of every file in it, so that the same code is the same zip


def write_package(file: Path) -> Path:
    """Write lakerec with its SQL and expectations; the same code gives the same bytes, a reader never sees a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in _files():
            name = zipfile.ZipInfo(f"{ROOT.name}/{path.relative_to(ROOT)}", BEGINNING)
            name.external_attr = 0o644 << 16
            zipped.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return draft.replace(file)


def _files() -> list[Path]:
    """Everything below the package, through its links to sql/ and expectations/."""
    found = (Path(folder) / name for folder, _, names in os.walk(ROOT, followlinks=True) for name in names)
    return sorted(path for path in found if path.suffix != ".pyc")
