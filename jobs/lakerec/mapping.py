"""What a value brings about in an expression of the sources, as an error that names the expression and the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lakerec import faults
from lakerec.config import Config, Source
from lakerec.errors import SourceError
from lakerec.events import TYPES
from lakerec.items import source_columns
from lakerec.lake import first_line
from lakerec.sources import cause, fixed_folder

FILE = "_source_file"


@contextmanager
def told(config: Config, landed: Mapping[str, DataFrame]) -> Iterator[None]:
    """Raise SourceError in the place of an error that an expression ends in; `landed` has each source's rows.

    The error itself does not say whose it is: some of Spark's functions throw what Java throws. So each expression is
    computed alone. Where all of them go well, or the machine was at fault, the error stays as it is.
    """
    try:
        yield
    except (Py4JJavaError, PySparkException, pa.ArrowException) as error:
        if faults.of_machine(error):
            raise
        for name, rows in landed.items():
            _refuse(config, name, rows)
        raise


def _refuse(config: Config, name: str, rows: DataFrame) -> None:
    """SourceError with the first of a source's expressions that ends in an error over its rows."""
    source: Source = getattr(config.sources, name)
    wide = rows.select(F.col("source_file").alias(FILE), *source_columns(source))
    if _fault(wide):  # rows that cannot be read are no expression's fault
        return
    for keys, expression in source.expressions().items():
        column = _text(name, keys, expression)
        if why := _fault(wide.select(column)):
            raise SourceError(
                f"{config.where('sources', name, *keys)}: {expression!r} ends in an error at a value of "
                f"{_place(config, name, _file(wide, column))}: {why} The table stays as it was. Let the expression "
                "take such values (try_cast, coalesce, if), or have the file delivered without them"
            )


def _text(name: str, keys: tuple[str, ...], expression: str) -> Column:
    """An expression's value as text, through the type that its column has; bytes that are no text end it, too."""
    kind = TYPES.get(keys[-1], "string") if name == "events" else "string"
    return F.validate_utf8(F.expr(expression).cast(kind).cast("string"))


def _fault(rows: DataFrame) -> str:
    """What Spark says where it cannot compute the rows; empty where it can."""
    try:
        rows.write.format("noop").mode("overwrite").save()
    except (Py4JJavaError, PySparkException) as error:
        if faults.of_machine(error):
            raise
        return cause(error) if isinstance(error, Py4JJavaError) else first_line(error)
    return ""


def _file(wide: DataFrame, column: Column) -> str:
    """The first file with a value that ends the expression, by halves."""
    names = sorted(row[FILE] for row in wide.select(FILE).distinct().collect())
    while len(names) > 1:
        half = names[: len(names) // 2]
        names = half if _fault(wide.where(F.col(FILE).isin(half)).select(column)) else names[len(half) :]
    return names[0]


def _place(config: Config, name: str, file: str) -> str:
    """A landed row's file, where the configuration has its source's: catalogues land under their source's name."""
    path = getattr(config.sources, name).path or config.sources.events.path or ""
    return fixed_folder(config.resolve(path)) + file.removeprefix(f"{name}/" if name != "events" else "")
