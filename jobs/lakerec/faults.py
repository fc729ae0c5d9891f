"""What Spark and the system throw where the machine is at fault, as an error that says what a person can do."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError

from lakerec.config import Config
from lakerec.errors import ConfigError, ConnectionFailedError, DiskFullError, LakerecError, ProcessLostError

# As the kernel, the JVM, safetensors and SQLite say it.
FULL = re.compile(r"no space left on device|disk quota exceeded|database or disk is full", re.IGNORECASE)
LOST = re.compile(r"Python worker (exited|failed)|ExecutorLostFailure|SparkContext was shut down|stopped SparkContext")
# What the JVM says where its heap is too small; other kinds of OutOfMemoryError (threads) a larger one makes worse.
HEAP = re.compile(
    r"java\.lang\.OutOfMemoryError: (Java heap space|GC overhead limit|Requested array size)|SparkOutOfMemoryError"
)
MEMORY = "java.lang.OutOfMemoryError"
TOLD = 300  # characters of a cause
# A Java exception in a text of Spark's: its class and message. Behind "executor" where it came over the network.
CAUSE = re.compile(
    r"^(?:.* executor \S+\): |Caused by: |: )?((?:[\w$]+\.)+[\w$]*(?:Exception|Error)\b.*)$", re.MULTILINE
)
# What such a one says of a file that was not read: that nobody may, that its storage or the way there failed, that the
# file itself is damaged (as zlib, Hadoop's codecs, Snappy and Parquet put it), or only that something went wrong.
REFUSED = re.compile(
    r"Access(Denied|Control)Exception|NoAuthWithAWS|[Pp]ermission denied|Access Denied|Status Code: 40[13]"
    r"|Illegal file pattern|No FileSystem for scheme"
)
AWAY = re.compile(
    r"^(java\.net\.(?!URISyntax|MalformedURL)|javax\.net\.|org\.apache\.(http|hadoop\.(ipc|net|hdfs|fs\.(s3a|azurebfs)))\."
    r"|software\.amazon\.|com\.(amazonaws|azure|google\.cloud)\.)"
    r"|Status Code: 5\d\d|End of File Exception between|Premature (EOF|end of)|response from server"
    r"|FileNotFoundException: .*\((?!No such file|Is a directory)[^()]*\)$"  # what open(2) said
)
DAMAGED = re.compile(
    r"EOFException|ZipException|DataFormatException|ChecksumException|ZstdIOException|CharacterCoding|MalformedInput"
    r"|UnmappableCharacter|UnsupportedEncoding|^[\w.]*(parquet|thrift)|could not (decode|read page)"
    r"|can ?not read (class|File)|(not a|stored|unknown) gzip|gzip (data|header|stream)|BZip2|crc error|bad block"
    r"|unexpected end of stream$"
    r"|(incorrect|invalid|unknown) (header|data|length|block|stored|code|bit|literal|distance|window|compression)"
    r"|too many length|header crc|FAILED_TO_UNCOMPRESS|PARSING_ERROR|INVALID_CHUNK_SIZE|Stream is corrupted"
)
# What the system, Hadoop and S3 say where a user may not read or write; and Delta and Hadoop of a folder that was not
# made, without a reason.
DENIED = re.compile(r"Access(Denied|Control)Exception|[Pp]ermission denied|Operation not permitted")
UNMADE = re.compile(
    r"(?:LOG_PATH\] Cannot create|Mkdirs failed to create) (?:file:)?(/.*?)(?: \(exists.*)?$", re.MULTILINE
)
UNSAID = re.compile(r"^java\.nio\.channels\.|^[\w.$]*(IOException|FSError|FileSystemException|TimeoutException)\b")


@contextmanager
def told(config: Config) -> Iterator[None]:
    """Raise DiskFullError, ProcessLostError or ConfigError (a right is missing) in the place of whatever means it."""
    try:
        yield
    except DiskFullError:
        raise  # of another disk than those below
    except Exception as error:
        local = config.spark.properties.get("spark.local.dir", tempfile.gettempdir())
        folders = (config.lake, *([config.resolve(config.files)] if config.files else []), local)
        found = named(error, folders) or denied(error, folders)
        if found is None:
            raise
        raise found from error


def named(error: BaseException, folders: Sequence[str]) -> LakerecError | None:
    """The error that says what a person can do, `folders` being written to; None where the machine is not at fault."""
    chain = list(_chain(error))
    if full := _first(chain, FULL):
        return DiskFullError(f"{full}\n{_free(folders)}. Each table is as of its last commit: make room, run again")
    if heap := _first(chain, HEAP):
        return ProcessLostError(
            f"{heap}\nThe memory of Spark's JVM did not do. Each table is as of its last commit: raise "
            "spark.driver_memory (on a cluster also spark.executor.memory in spark.properties), or have fewer cores in "
            "spark.master, a backfill smaller chunk_days; then run again"
        )
    lost = _first(chain, LOST) or next((f"{one}"[:TOLD] for one in chain if _jvm_is_gone(one)), None)
    if lost is None:
        return None
    return ProcessLostError(
        f"{lost}\nA process of Spark's was killed, or the machine had no memory left for it (the system's log says "
        "which). Each table is as of its last commit: run again; if it was memory, with fewer cores in spark.master"
    )


def denied(error: BaseException, folders: Sequence[str] = ()) -> ConfigError | None:
    """The error where this user may not read or write a file: any that Python names, of Java's those in `folders`."""
    if isinstance(error, ConfigError):
        return None  # of a source's file, say
    chain = list(_chain(error))
    paths = [str(one.filename) for one in chain if isinstance(one, PermissionError) and one.filename]
    told = paths[0] + ": permission denied" if paths else _denied_by_java("\n".join(map(str, chain)), folders)
    if not told:
        return None
    home = next((one for one in folders if _names(told, one)), str(Path(paths[0]).parent) if paths else "")
    owner = f"{home} is user {os.stat(home).st_uid}'s, " if os.path.exists(home) else ""
    return ConfigError(
        f"{told}\n{owner}this ran as user {os.getuid()}. Run every command as the user who owns the lake, and give "
        f"back what another has left there: chown -R USER {home} (on a store that is no disk: give the right to it)"
    )


def _denied_by_java(text: str, folders: Sequence[str]) -> str:
    """The line by which a file in the folders was refused; empty without one."""
    lines = [*CAUSE.findall(text), *(line.strip() for line in text.splitlines())]
    for line in lines:
        if DENIED.search(line) and any(_names(line, one) for one in folders):
            return re.sub(r"^[\w.$]*\.", "", line)[:TOLD]
    unmade = (place for place in UNMADE.findall(text) if any(_names(place, one) for one in folders))
    return next((f"{place}: cannot be made" for place in unmade if not _may_write(Path(place))), "")


def _names(text: str, folder: str) -> bool:
    """Whether a text names a folder or what is in it; HDFS tells a path without its host."""
    place = re.sub(r"^hdfs://[^/]*", "", folder).rstrip("/")
    return bool(place) and re.search(re.escape(place) + r"(?![\w.-])", text) is not None


def _may_write(place: Path) -> bool:
    """Whether this user may write to a folder, or to the first above it that is there."""
    there = next(one for one in (place, *place.parents) if os.path.exists(one))
    return os.access(there, os.W_OK | os.X_OK)


def of_machine(error: BaseException) -> bool:
    """Whether the machine is at fault, its memory included: the same input may do at another time."""
    return named(error, ()) is not None or any(MEMORY in str(one) for one in _chain(error))


def unread(error: BaseException, place: str, key: str) -> LakerecError | None:
    """The error where a source's file could not be read, `key` being its path's; None where the file is at fault.

    What does not say that the file is damaged is laid to its storage: to try again is cheaper than to deliver again.
    """
    trace = getattr(error, "_stackTrace", "")  # of PySpark's own exceptions, whose text is without it
    causes: list[str] = CAUSE.findall(f"{error}\n{trace}")
    why = re.sub(r"^[\w.$]*\.", "", causes[-1])[:TOLD] if causes else ""

    def say(sign: re.Pattern[str]) -> bool:
        return any(sign.search(one) for one in causes)

    if say(REFUSED):
        return ConfigError(f"{key}: {place}: {why}. Correct the path, or give this run's user the right to read it")
    if say(AWAY) or (say(UNSAID) and not say(DAMAGED)):
        return ConnectionFailedError(f"{place}: its storage did not give it: {why}. The file may be whole: run again")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the newest first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _first(chain: Sequence[BaseException], sign: re.Pattern[str]) -> str | None:
    """The first line of the errors' texts that has the sign."""
    lines = (line.strip() for one in chain for line in str(one).splitlines())
    return next((line[:TOLD] for line in lines if sign.search(line)), None)


def _jvm_is_gone(error: BaseException) -> bool:
    """Whether py4j has lost the JVM: a call's error then has neither a Java exception nor a trace."""
    bare = isinstance(error, Py4JError) and not isinstance(error, Py4JJavaError)
    silent = bare and "An error occurred while calling" in str(error) and "Trace" not in str(error)
    return silent or isinstance(error, Py4JNetworkError)


def _free(folders: Sequence[str]) -> str:
    """What each folder's disk has free, the fullest first."""
    free = sorted((shutil.disk_usage(place).free >> 20, place) for place in folders if Path(place).exists())
    return ", ".join(f"{place} has {megabytes:,} MB free" for megabytes, place in free)
