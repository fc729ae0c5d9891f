"""Write docs/tables.md from the DDL in sql/tables; with --check, exit with code 1 if the file says otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

from pages import write_or_check

from lakerec.tables import Column, Table, table, table_names

TARGET = Path(__file__).resolve().parents[1] / "docs" / "tables.md"
HEAD = """# Tables

Made from the DDL in `sql/tables` by `make docs`; do not edit it by hand.
A table lies at `LAKE/<layer>/<table>`, for example `lake/demo/gold/recommendations`. Ids are strings everywhere.
Keys are unique. A day is a day of the configuration's `timezone`.
"""


def document() -> str:
    """The whole page: an overview, then a section for each table."""
    tables = [table(name) for name in table_names()]
    overview = ["| table | partition | key | holds |", "|---|---|---|---|", *map(overview_line, tables)]
    return "\n".join([HEAD, *overview, "", *map(section, tables)]).rstrip() + "\n"


def overview_line(spec: Table) -> str:
    """One table as a line of the overview."""
    link = f"[{spec.name}](#{spec.name.replace('.', '')})"
    return f"| {link} | {', '.join(spec.partition) or '-'} | {', '.join(spec.key)} | {cell(spec.comment)} |"


def section(spec: Table) -> str:
    """One table with its columns."""
    place = f"Partitioned by `{', '.join(spec.partition)}`. " if spec.partition else ""
    head = [f"## {spec.name}", f"{spec.comment}. {place}Key: `{', '.join(spec.key)}`.", ""]
    return "\n".join([*head, "| column | type | holds |", "|---|---|---|", *map(column_line, spec.columns), ""])


def column_line(column: Column) -> str:
    """One column as a line of its table's section."""
    return f"| {column.name} | `{column.type}` | {cell(column.comment)} |"


def cell(text: str) -> str:
    """Text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, document, __doc__))
