"""Names that become parts of paths: they name a file or folder in its place, and nowhere else."""

from __future__ import annotations

import re

from lakerec.errors import UsageError


def as_part(name: str, what: str) -> str:
    """A name that is one part of a path, as it is; UsageError for one that is hidden, or leads elsewhere (.. or /)."""
    if re.fullmatch(r"\w[\w.:+@~-]{0,199}", name) is None:
        raise UsageError(
            f"{name!r} is no {what}: letters, digits and . _ - : + @ ~ are expected, no / and no leading dot"
        )
    return name
