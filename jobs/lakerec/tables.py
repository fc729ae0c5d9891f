"""Table names, columns, keys and partitions, read from the DDL in sql/tables: the one place a schema is written."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import sqlglot
from pyspark.sql.types import StructField, StructType, _parse_datatype_string
from sqlglot import exp

from lakerec.errors import ContractError

SQL = files("lakerec") / "sql"  # a link to the folder at the top of the checkout; in a wheel or zip its files


@dataclass(frozen=True)
class Column:
    """A column of a table: name, Spark type as SQL, and what it holds."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Table:
    """A table of the lake as its DDL states it."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    partition: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def path(self) -> str:
        """The folder below the lake: layer/table."""
        return self.name.replace(".", "/", 1)

    @property
    def column_names(self) -> list[str]:
        """Column names in the DDL's order."""
        return [column.name for column in self.columns]

    def schema(self) -> StructType:
        """The Spark schema with comments; needs a running session to parse the types."""
        return _schema(self)


@dataclass(frozen=True)
class Migration:
    """A SELECT from a table of an older release, as `{old}`: what it takes away (a column, or one of a type)."""

    name: str
    table: str
    takes: str
    type: str | None
    sql: str


@cache
def _schema(spec: Table) -> StructType:
    return StructType([_field(column) for column in spec.columns])


def _field(column: Column) -> StructField:
    return StructField(column.name, _parse_datatype_string(column.type), True, {"comment": column.comment})


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return "`" + name.replace("`", "``") + "`"


def sql_text(kind: str, name: str) -> str:
    """The text of sql/<kind>/<name>.sql; raises ContractError where there is none."""
    file = SQL / kind / f"{name}.sql"
    if not file.is_file():
        raise ContractError(f"{file} does not exist")
    return file.read_text(encoding="utf-8")


def table_names() -> list[str]:
    """Every table that has a DDL, sorted."""
    return sorted(file.name.removesuffix(".sql") for file in (SQL / "tables").iterdir())


@cache
def table(name: str) -> Table:
    """Parse the DDL of one table; raises ContractError where it lacks key, comment or columns."""
    text = sql_text("tables", name)
    key = re.search(r"^-- key: (.+)$", text, re.MULTILINE)
    create = sqlglot.parse_one(text, dialect="spark")
    if key is None or not isinstance(create, exp.Create):
        raise ContractError(f"sql/tables/{name}.sql: a '-- key:' line and one CREATE TABLE are expected")
    keys = tuple(part.strip() for part in key.group(1).split(","))
    columns = tuple(_column(name, definition) for definition in create.this.expressions)
    return Table(name, _comment(create), columns, _partition(create), keys)


def _column(name: str, definition: exp.Expression) -> Column:
    comment = definition.find(exp.CommentColumnConstraint)
    if comment is None:
        raise ContractError(f"sql/tables/{name}.sql: column {definition.name} has no COMMENT")
    return Column(definition.name, definition.args["kind"].sql(dialect="spark"), comment.this.name)


def _comment(create: exp.Create) -> str:
    found = create.find(exp.SchemaCommentProperty)
    return found.this.name if found else ""


def _partition(create: exp.Create) -> tuple[str, ...]:
    found = create.find(exp.PartitionedByProperty)
    return tuple(part.name for part in found.this.expressions) if found else ()


@cache
def migrations(name: str) -> tuple[Migration, ...]:
    """The migrations of a table, oldest first: sql/migrations/NNNN_<table>.sql."""
    return tuple(_migration(file) for file in _migration_files() if file.endswith(f"_{name}.sql"))


def _migration_files() -> list[str]:
    return sorted(file.name for file in (SQL / "migrations").iterdir() if file.name.endswith(".sql"))


def _migration(file: str) -> Migration:
    text = sql_text("migrations", file.removesuffix(".sql"))
    found = re.match(r"-- takes: (\w+)(?: (\S+))?\n", text)
    if found is None or "{old}" not in text:
        raise ContractError(f"sql/migrations/{file}: a first line '-- takes: COLUMN' and SELECT ... FROM {{old}}")
    return Migration(file, file.split("_", 1)[1].removesuffix(".sql"), found[1], found[2] and found[2].lower(), text)


@cache
def fingerprint() -> str:
    """A hash of every DDL and migration: what the tables of a lake of this release look like."""
    texts = [sql_text("tables", name) for name in table_names()]
    texts += [sql_text("migrations", file.removesuffix(".sql")) for file in _migration_files()]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
