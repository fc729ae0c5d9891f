"""What brings a table of an older release to its DDL: ALTER TABLE for what adds or tells, else a migration.

Pure. A column that the DDL adds, moves or comments otherwise is a commit of metadata: no data is written anew, and
what an older row lacks is null. A column that the DDL no longer has, or has with another type, is what a file of
sql/migrations is for: a SELECT from the old table (`{old}`), whose first line names what it takes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql.types import StructField, StructType

from lakerec.tables import Migration, Table, quoted


def refused(spec: Table, found: StructType, migrations: Sequence[Migration]) -> list[str]:
    """What of a table's columns neither its DDL nor a migration knows, for people."""
    taken = {one.takes for one in due(migrations, found)}
    left = StructType([field for field in found.fields if field.name not in taken])
    return [*_gone(spec, left), *_retyped(spec, left)]


def statements(spec: Table, found: StructType, target: str) -> list[str]:
    """What brings a table with columns of which none is refused to its DDL; `target` is its name in SQL."""
    added = _added(spec, found)
    order = _order_with(spec, [field.name for field in found.fields])
    add = [f"ALTER TABLE {target} ADD COLUMNS ({', '.join(added)})"] if added else []
    return add + [f"ALTER TABLE {target} ALTER COLUMN {one}" for one in (*_moves(spec, order), *_comments(spec, found))]


def due(migrations: Sequence[Migration], found: StructType) -> list[Migration]:
    """The migrations that take away what the table still has, oldest first."""
    known = {field.name: field.dataType for field in found.fields}
    return [one for one in migrations if one.takes in known and one.type in (None, known[one.takes].simpleString())]


def _text(value: str) -> str:
    """A text as an SQL literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _gone(spec: Table, found: StructType) -> list[str]:
    return [f"column {name} is not in the DDL" for name in found.names if name not in spec.column_names]


def _retyped(spec: Table, found: StructType) -> list[str]:
    wanted = {field.name: field.dataType.simpleString() for field in spec.schema().fields}
    told = ((field.name, field.dataType.simpleString()) for field in found.fields if field.name in wanted)
    return [f"column {name} is {kind}, the DDL says {wanted[name]}" for name, kind in told if kind != wanted[name]]


def _added(spec: Table, found: StructType) -> list[str]:
    """The definitions of the columns that the table lacks, each behind the one before it in the DDL."""
    fields = enumerate(spec.schema().fields)
    return [f"{_definition(field)} {_place(spec, n)}" for n, field in fields if field.name not in found.names]


def _definition(field: StructField) -> str:
    return f"{quoted(field.name)} {field.dataType.simpleString()} COMMENT {_text(field.metadata['comment'])}"


def _place(spec: Table, number: int) -> str:
    return f"AFTER {quoted(spec.column_names[number - 1])}" if number else "FIRST"


def _order_with(spec: Table, order: list[str]) -> list[str]:
    """The table's order once the columns of `_added` are in it."""
    for number, name in enumerate(spec.column_names):
        if name not in order:
            order.insert(order.index(spec.column_names[number - 1]) + 1 if number else 0, name)
    return order


def _moves(spec: Table, order: list[str]) -> list[str]:
    moves = []
    for number, name in enumerate(spec.column_names):
        if order[number] != name:
            order.remove(name)
            order.insert(number, name)
            moves.append(f"{quoted(name)} {_place(spec, number)}")
    return moves


def _comments(spec: Table, found: StructType) -> list[str]:
    known = {field.name: field.metadata.get("comment") for field in found.fields}
    told = ((column.name, column.comment) for column in spec.columns if column.name in known)
    return [f"{quoted(name)} COMMENT {_text(text)}" for name, text in told if known[name] != text]
