"""The files a deployment brings: which of them belong to a window, what their headers say, and their rows as landed."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import reduce
from pathlib import Path
from typing import TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StructType, TimestampType

from lakerec import faults
from lakerec.config import Config, Source
from lakerec.errors import LakerecError, SourceError
from lakerec.files import files
from lakerec.lake import Window as Days
from lakerec.lake import local_frame
from lakerec.tables import quoted

# The day of a catalogue file without one in its path: known from the beginning.
BEGINNING = date(1970, 1, 1)
CORRUPT = "_corrupt_record"
TAKEN = (CORRUPT, "_metadata")  # names that a column of CSV cannot have in Spark
ENCODING_FAULT = "lakerec-encoding"
INSTANT = "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"  # what a timestamp of Parquet or Delta is landed as
DATE = r"\d{4}-\d{2}-\d{2}"
PART = re.compile(r"\[([!^]?)((?:\\.|[^\]\\])+)\]|.")  # of a pattern of Hadoop's: a class of characters, or one of them


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: where it lies, its name below the source's fixed folder, its columns."""

    path: str
    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Landing:
    """The files of a window: those with a header, the days without one, and columns nobody mapped."""

    files: tuple[SourceFile, ...]
    empty_days: tuple[date, ...]
    new_columns: tuple[str, ...]


def catalogues(config: Config) -> dict[str, Source]:
    """The configured catalogues that have files of their own."""
    return {name: s for name, s in config.sources if name != "events" and s is not None and s.path}


def check_headers(spark: SparkSession, config: Config, window: Days) -> None:
    """Read the header of every file of a window: a missing file or column is a SourceError before anything lands."""
    for name, source in {"events": config.sources.events, **catalogues(config)}.items():
        find(spark, config, source, name, window)


def days(window: Days) -> Iterator[date]:
    """Each day of a window."""
    for offset in range((window.end - window.start).days):
        yield window.start + timedelta(days=offset)


def find(spark: SparkSession, config: Config, source: Source, name: str, window: Days) -> Landing:
    """List the files of a window and check their headers; raises SourceError for a missing file or column."""
    pattern = config.resolve(source.path or "")
    found: list[SourceFile] = []
    empty: list[date] = []
    for day in days(window) if source.dated else [None]:
        mine = [f for f in _list(spark, config, source, name, day) if f.columns]
        if not mine and day is not None:
            empty.append(day)
        found += mine
    if empty and source.missing == "error":
        raise SourceError(_no_file(pattern, name, empty))
    if not found and not source.dated:
        raise SourceError(f"sources.{name}: {pattern} has no file or only empty ones; correct sources.{name}.path")
    new = _check_columns(found, config, source, name)
    return Landing(tuple(found), tuple(empty), new)


def refuse_gone(landed: Callable[[], DataFrame], empty: Collection[date], source: Source, name: str) -> None:
    """SourceError where days that came empty have rows of an earlier delivery, which nobody has said to remove.

    landed: what bronze holds of the source, asked for where there are such days.
    """
    if source.missing == "remove" or not empty:
        return
    gone = landed().where(F.col("ingest_date").isin(list(empty))).groupBy("ingest_date").count()
    if found := gone.orderBy("ingest_date").collect():
        rows = sum(row["count"] for row in found)
        what, alone = ("files", "deliver a file of its header alone, or ") if source.dated else ("rows", "")
        raise SourceError(
            f"sources.{name}: {source.path} has no rows for {len(found)} days, the first {found[0]['ingest_date']}, "
            f"that have landed {rows:,} before; nothing was replaced. Bring the {what} back, or leave these days out "
            f"of the window. A day that was withdrawn: {alone}set sources.{name}.missing: remove"
        )


def _no_file(pattern: str, name: str, empty: list[date]) -> str:
    return (
        f"sources.{name}: no rows for {len(empty)} days, the first {empty[0]}: {pattern} has no such file, or an "
        f"empty one. Deliver it, or set sources.{name}.missing: empty"
    )


def _check_columns(found: list[SourceFile], config: Config, source: Source, name: str) -> tuple[str, ...]:
    required, new = source.required_columns(), set()
    for file in found:
        missing = [column for column in required if column not in file.columns]
        if missing:
            reader = config.where("sources", name, *source.readers(missing[0])[0])
            raise SourceError(
                f"{file.path}: required column {', '.join(missing)} is missing; the file has "
                f"{', '.join(file.columns)}. Correct the file, or {reader}"
            )
        new |= set(file.columns) - set(source.source_columns())
    return tuple(sorted(new))


def _list(spark: SparkSession, config: Config, source: Source, name: str, day: date | None) -> list[SourceFile]:
    pattern = config.resolve(source.path or "")
    prefix, dated = fixed_folder(pattern), pattern.replace("{date}", str(day))
    with _opening(config, name, dated):
        places = files(spark).glob(dated)
    found = []
    for place in places:
        if _plain(place) != _plain(pattern):  # a file that the configuration names may be whatever it is
            _refuse_elsewhere(_plain(place), prefix)
        with _opening(config, name, place):
            _refuse_larger(spark, place, source)
            found.append(SourceFile(place, _plain(place)[len(prefix) :].lstrip("/"), _columns(spark, place, source)))
    return found


@contextmanager
def _opening(config: Config, name: str, place: str) -> Iterator[None]:
    """Raise the error of a file that cannot be read in the place of Java's."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        raise _unread(config, name, place, error) from None


def _unread(config: Config, name: str, place: str, error: Exception) -> LakerecError:
    found = faults.unread(error, place, config.where("sources", name, "path"))
    return found or SourceError(f"{place}: cannot be read: {cause(error)}. Deliver it again")


def _refuse_elsewhere(place: str, folder: str) -> None:
    """A link out of the source's folder would bring in whatever the lake's user may read."""
    if "://" in place:
        return
    root = Path(folder).resolve()
    for file in (Path(place), *Path(place).rglob("*")):  # a day may be a folder
        if not file.resolve().is_relative_to(root):
            raise SourceError(f"{file} is a link to {file.resolve()}, outside of {folder}: deliver the file itself")


def _refuse_larger(spark: SparkSession, place: str, source: Source) -> None:
    """A small file may expand to more than the disk holds: found before it is read."""
    if source.format in ("csv", "json") and files(spark).holds_more(place, source.max_bytes):
        raise SourceError(
            f"{place} holds more than {source.max_bytes:,} bytes once it is decompressed; nothing was written. "
            "Deliver it in parts, or raise max_bytes of its source where it is meant to be so large"
        )


def fixed_folder(pattern: str) -> str:
    """The part of a path pattern that has neither day nor wildcard, as a folder."""
    fixed = re.split(r"[{*?\[]", _plain(pattern))[0]
    return fixed.rsplit("/", 1)[0] + "/"


def _plain(path: str) -> str:
    """A local URI as a path; another one as it is."""
    return re.sub(r"^file:/+", "/", path)


def _columns(spark: SparkSession, place: str, source: Source) -> tuple[str, ...]:
    if source.format in ("parquet", "delta"):
        return tuple(spark.read.format(source.format).load(place).columns)
    line = files(spark).first_line(place, source.options.get("encoding", "UTF-8"))
    if not line:
        return ()
    return _json_keys(line) if source.format == "json" else _header(place, line, source)


def _header(place: str, line: str, source: Source) -> tuple[str, ...]:
    """The column names of a header line."""
    if "\ufffd" in line:
        raise SourceError(f"{place}: the header is not in this encoding; set options.encoding")
    try:
        cells = _cells(line.lstrip("\ufeff"), source)
    except csv.Error as error:
        told = "Deliver it again, or correct format and options of its source"
        raise SourceError(f"{place}: the first line cannot be split into columns: {error}. {told}") from None
    names = tuple(cell or f"_c{number}" for number, cell in enumerate(cells))
    if taken := [n for n in names if n.lower() in TAKEN]:
        raise SourceError(f"{place}: the header names {', '.join(taken)}, which no column may be called; rename it")
    times = Counter(n.lower() for n in names)  # as Spark compares them
    if twice := sorted({n for n in names if times[n.lower()] > 1}):
        told = f"names {', '.join(twice)} twice" + " (capitals do not count)" * (len(twice) > 1)
        raise SourceError(f"{place}: the header {told}; rename one of them")
    return names


def _cells(line: str, source: Source) -> list[str]:
    """A line of CSV in its cells, as Spark splits it; csv's own separators have one character, Spark's any number."""
    sep, quote = source.options.get("sep", ",").replace("\\t", "\t"), source.options.get("quote", '"')
    mark = sep if len(sep) == 1 else next(c for c in map(chr, range(0xE000, 0xF900)) if c not in line)
    rows = csv.reader(
        [line.replace(sep, mark)],
        delimiter=mark,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    return [cell.replace(mark, sep) for cell in next(rows)]


def _json_keys(line: str) -> tuple[str, ...]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return (CORRUPT,)
    return tuple(found) if isinstance(found, dict) else (CORRUPT,)


class _DoubtError(SourceError):
    """A value holds U+FFFD: bytes of another encoding, or the sign itself, delivered so."""


T = TypeVar("T")


def land(
    spark: SparkSession, config: Config, source: Source, name: str, landing: Landing, write: Callable[[DataFrame], T]
) -> T:
    """Let `write` have the rows of a landing; a damaged file, or one of another encoding, is a SourceError.

    Looking for U+FFFD while Spark reads costs nothing. Only where there is one are the files themselves decoded, byte
    by byte: if all are of the encoding, the sign was delivered, and the rows are written as they are.
    """
    try:
        with reading(config, name):
            return write(read(spark, config, source, landing))
    except _DoubtError as doubt:
        encoding = source.options.get("encoding", "UTF-8")
        for file in landing.files:
            with _opening(config, name, file.path):
                if not files(spark).decodes(file.path, encoding):
                    raise SourceError(str(doubt)) from None
        with reading(config, name):
            return write(read(spark, config, source, landing, checked=False))


def read(spark: SparkSession, config: Config, source: Source, landing: Landing, checked: bool = True) -> DataFrame:
    """The rows of the files as landed: ingest_date (null without a day in the path), source_file, row_number, payload.

    A value with U+FFFD ends a checked read with an error that names file and row.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in landing.files:
        groups[file.columns].append(file.path)
    parts = [_payload(spark, source, columns, paths) for columns, paths in sorted(groups.items())]
    if not parts:
        landed = "ingest_date date, source_file string, row_number bigint, payload map<string,string>"
        return local_frame(spark, StructType.fromDDL(landed))
    text = source.format in ("csv", "json")
    return _placed(reduce(DataFrame.unionByName, parts), config.resolve(source.path or ""), checked and text)


def _payload(spark: SparkSession, source: Source, columns: tuple[str, ...], paths: list[str]) -> DataFrame:
    order = [F.col("_metadata.file_path").alias("file"), F.col("_metadata.file_block_start").alias("block")]
    tag = [*order, F.monotonically_increasing_id().alias("line")]
    if source.format == "csv":
        fields = ", ".join(f"{quoted(c)} string" for c in (*columns, CORRUPT))
        reader = spark.read.schema(fields).options(header=True, columnNameOfCorruptRecord=CORRUPT)
        rows = reader.options(**source.options).csv(paths)
        return rows.select(*tag, _map(rows, columns).alias("payload"))
    if source.format == "json":
        rows = spark.read.options(**source.options).text(paths).where(F.length(F.trim("value")) > 0)
        parsed = F.from_json("value", "map<string,string>")
        corrupt = F.create_map(F.lit(CORRUPT), F.col("value"))
        return rows.select(*tag, F.coalesce(parsed, corrupt).alias("payload"))
    reader = spark.read.format(source.format).options(**source.options)
    # Delta's reader takes one table at a time.
    parts = [reader.load(path) for path in paths] if source.format == "delta" else [reader.load(paths)]
    return reduce(DataFrame.unionByName, (part.select(*tag, _texts(part, columns).alias("payload")) for part in parts))


def _texts(rows: DataFrame, columns: tuple[str, ...]) -> Column:
    """All columns of a row as a map from name to text; an instant keeps its offset, which a cast would leave out."""
    instants = {field.name for field in rows.schema.fields if isinstance(field.dataType, TimestampType)}
    cells = {c: F.col(quoted(c)) for c in columns}
    texts = [F.date_format(x, INSTANT) if c in instants else x.cast("string") for c, x in cells.items()]
    return F.map_from_arrays(F.array(*[F.lit(c) for c in columns]), F.array(*texts))


def _map(rows: DataFrame, columns: tuple[str, ...]) -> Column:
    """As _texts; a corrupt record only where there is one."""
    whole = _texts(rows, columns)
    broken = F.map_concat(whole, F.create_map(F.lit(CORRUPT), F.col(CORRUPT)))
    return F.when(F.col(CORRUPT).isNull(), whole).otherwise(broken)


def _placed(rows: DataFrame, pattern: str, checked: bool) -> DataFrame:
    """Number the rows of each file from 1, and take the day from the path."""
    plain = F.regexp_replace(F.expr("url_decode(replace(file, '+', '%2B'))"), "^file:/+", "/")
    name = F.substring(plain, F.lit(len(fixed_folder(pattern)) + 1), F.lit(4096))
    in_file = Window.partitionBy("source_file").orderBy("block", "line")
    number = F.row_number().over(in_file).cast("bigint")
    numbered = rows.withColumn("source_file", name).withColumn("row_number", number)
    return numbered.select(
        F.to_date(_day(pattern)).alias("ingest_date"),
        "source_file",
        (_checked_encoding() if checked else F.col("row_number")).alias("row_number"),
        "payload",
    )


def _day(pattern: str) -> Column:
    if "{date}" not in pattern:
        return F.lit(None)
    # A day's folder of Parquet or Delta has its files below it.
    return F.regexp_extract("source_file", f"^{_regex(_plain(pattern)[len(fixed_folder(pattern)) :])}(?:/.*)?$", 1)


def _regex(below: str) -> str:
    """A pattern of Hadoop's as a regular expression of Java's, whose first group is the day."""
    regex = PART.sub(_part, below).replace(r"\{date\}", f"({DATE})", 1).replace(r"\{date\}", DATE)
    return re.sub(r"\\\{(.*?)\\\}", lambda found: f"(?:{found[1].replace(',', '|')})", regex)


def _part(found: re.Match[str]) -> str:
    if members := found[2]:  # of a class of Java's && is an intersection
        return "(?!/)[" + "^" * bool(found[1]) + members.replace("&", r"\&") + "]"
    return {"*": "[^/]*", "?": "[^/]"}.get(found[0]) or re.escape(found[0])


def _checked_encoding() -> Column:
    """row_number, or the end of the job where a value holds U+FFFD: the mark of bytes that are no text here."""
    values = F.concat_ws("", F.map_values("payload"))
    told = F.concat_ws("|", F.lit(ENCODING_FAULT), F.col("source_file"), F.col("row_number").cast("string"))
    return F.when(F.instr(values, "\ufffd") > 0, F.raise_error(told).cast("bigint")).otherwise(F.col("row_number"))


@contextmanager
def reading(config: Config, name: str) -> Iterator[None]:
    """Turn what Spark throws at a file that it cannot read into an error that names the file and the way out."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        text = str(error)
        fault = re.search(rf"{ENCODING_FAULT}\|([^|]+)\|(\d+)", text)
        if fault:
            raise _DoubtError(
                f"{fault.group(1)}, row {fault.group(2)}: bytes that are not of the file's encoding; set "
                f"sources.{name}.options.encoding (for example ISO-8859-1), or deliver the file as UTF-8"
            ) from None
        broken = re.search(
            r"(?:Encountered error while reading file|FAILED_READ_FILE\S*\]?[^\n]*?) ?(\w+:/[^\s,]+)", text
        )
        if broken or "EOFException" in text or "ZipException" in text or "not a gzip" in text:
            place = broken.group(1).rstrip(".") if broken else f"a file of sources.{name}"
            raise _unread(config, name, place, error) from None
        raise


def cause(error: Exception) -> str:
    """The last 'Caused by' of a Java stack trace, without its class; 300 characters at most."""
    text = str(error)
    lines = [line for line in text.splitlines() if line.startswith("Caused by:")]
    last = lines[-1] if lines else next((line for line in text.splitlines() if "Exception" in line), text[:200])
    return last.split(": ", 2)[-1].strip()[:300]
