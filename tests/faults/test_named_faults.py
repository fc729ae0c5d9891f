"""Faults of the machine have names: what Spark, Python and libraries throw becomes an error that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
from pyspark.sql import SparkSession
from tests.conftest import SETTINGS

from lakerec.config import Config
from lakerec.errors import (
    ConfigError,
    ConnectionFailedError,
    ContractError,
    DiskFullError,
    ModelError,
    ProcessLostError,
)
from lakerec.faults import denied, named, of_machine, told, unread
from lakerec.job import guarded
from lakerec.lake import file_lease

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def caused(error: Exception, cause: Exception, said: bool = True) -> Exception:
    """An error raised while another one was dealt with; `said`: by `raise ... from`."""
    try:
        try:
            raise cause
        except Exception as first:
            if said:
                raise error from first
            raise error from None
    except Exception as found:
        return found


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("Job aborted\n\tat x.y.Z\nCaused by: java.io.IOException: No space left on device\n\tat a.b.C"),
        caused(ModelError("cannot write"), FULL),
        caused(ContractError("an expectation failed"), FULL, said=False),
        RuntimeError("I/O error: Disk quota exceeded (os error 122)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
    ids=["python", "jvm", "cause", "hidden cause", "quota", "sqlite"],
)
def test_a_full_disk_is_named_with_the_room_that_is_left(error: Exception, tmp_path: Path) -> None:
    found = named(error, [str(tmp_path), "/nowhere"])
    assert isinstance(found, DiskFullError)
    cause, told = str(found).splitlines()
    assert "full" in cause or "No space" in cause or "quota" in cause
    assert told.startswith(f"{tmp_path} has ") and " MB free" in told and "/nowhere" not in told


def test_the_disk_of_the_models_is_named_where_it_is_not_the_lakes(tmp_path: Path) -> None:
    spark = {"properties": {"spark.local.dir": "/dev/shm"}}
    given = {"lake": "s3a://shop/lake", "files": str(tmp_path), "spark": spark}
    with pytest.raises(DiskFullError) as caught, told(Config.model_validate(SETTINGS | given)):
        raise FULL
    assert f"{tmp_path} has " in str(caught.value) and "/dev/shm has " in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"),
        RuntimeError("ExecutorLostFailure (executor 1 exited caused by one of the running tasks)"),
        Py4JNetworkError("Answer from Java side is empty"),
        Py4JError("An error occurred while calling o61.save"),
    ],
    ids=["worker", "executor", "no answer", "broken off"],
)
def test_a_process_that_died_is_named(error: Exception) -> None:
    found = named(error, [])
    assert isinstance(found, ProcessLostError) and str(error)[:20] in str(found)


HEAPS = ["Java heap space", "GC overhead limit exceeded", "Requested array size exceeds VM limit"]


@pytest.mark.parametrize("why", HEAPS)
def test_a_heap_that_is_too_small_names_the_settings_to_change(spark: SparkSession, why: str) -> None:
    jvm = spark._jvm
    assert jvm is not None
    failed = jvm.java.util.concurrent.CompletableFuture()
    failed.completeExceptionally(jvm.java.lang.OutOfMemoryError(why))
    with pytest.raises(Py4JJavaError) as caught:
        failed.get()
    found = named(caught.value, [])
    assert isinstance(found, ProcessLostError) and f"OutOfMemoryError: {why}" in str(found).splitlines()[0]
    assert "spark.driver_memory" in str(found) and "chunk_days" in str(found)


def test_memory_that_no_larger_heap_would_help_is_of_the_machine_and_has_no_name() -> None:
    error = RuntimeError("java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory")
    assert named(error, []) is None and of_machine(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("full of errors"),
        ModelError("the model is missing"),
        Py4JError("An error occurred while calling o61.nothing. Trace:\nMethod nothing([]) does not exist"),
    ],
)
def test_what_is_no_fault_of_the_machine_keeps_its_name(error: Exception) -> None:
    assert named(error, []) is None


def refused(path: Path | str) -> PermissionError:
    """As the system raises it; tests run as root, whom it refuses nothing."""
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_a_lease_that_is_another_users_names_its_file_and_whose_the_lake_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(place: Path, *_: object) -> None:
        raise refused(place)

    config = Config.model_validate(SETTINGS | {"lake": str(tmp_path)})
    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ConfigError) as caught, told(config), file_lease(tmp_path, "job", "run", 0):
        pass
    why, what = str(caught.value).splitlines()
    assert why == f"{tmp_path}/_lease: permission denied"
    assert what.startswith(f"{tmp_path} is user {os.getuid()}'s, ") and f"chown -R USER {tmp_path} " in what


def test_a_right_that_is_missing_elsewhere_is_named_too_and_ends_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: Exception) -> None:
        raise error

    assert guarded(lambda: fail(refused(tmp_path / "spark.conf"))) == ConfigError.exit_code
    assert f"ConfigError: {tmp_path}/spark.conf: permission denied" in capsys.readouterr().err
    with pytest.raises(PermissionError):  # to end another user's process, say
        guarded(lambda: fail(PermissionError(errno.EPERM, "Operation not permitted")))


LAKE = "/srv/lake"
DENIALS = {
    "disk": f"java.io.FileNotFoundException: {LAKE}/bronze/events/a.parquet (Permission denied)",
    "lease": f"java.io.FileNotFoundException: {LAKE}/_lease.jvm (Permission denied)",
    "log": f"java.nio.file.AccessDeniedException: {LAKE}/ops/runs/_delta_log/0.json",
    "mode": f"java.io.IOException: chmod: changing permissions of '{LAKE}/ops': Operation not permitted",
    "hdfs": "org.apache.hadoop.security.AccessControlException: Permission denied: user=ann, access=WRITE, "
    f'inode="{LAKE}":lake:supergroup:drwxr-xr-x',
    "worker": "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
    f"PermissionError: [Errno 13] Permission denied: '{LAKE}/_scoring/a'",
}


@pytest.mark.parametrize("lake", [LAKE, f"hdfs://name:8020{LAKE}"])
@pytest.mark.parametrize("why", DENIALS.values(), ids=DENIALS)
def test_a_file_of_the_lake_that_java_may_not_have_is_named(lake: str, why: str) -> None:
    text = (
        f"calling o1.save.\n: org.apache.spark.SparkException: to file:{LAKE}/x\n\tat a.b.C(D.java:1)\nCaused by: {why}"
    )
    found = denied(RuntimeError(text), ["/nowhere", lake])
    assert isinstance(found, ConfigError) and f"chown -R USER {lake} " in str(found)
    assert str(found).splitlines()[0] in why and LAKE in str(found).splitlines()[0]


def test_a_bucket_that_refuses_is_named_with_the_right_to_give() -> None:
    found = denied(RuntimeError(f"x\nCaused by: {DENIED}"), ["s3a://b/k"])
    assert "s3a://b/k: open" in str(found) and "give the right to it" in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "[DELTA_CANNOT_CREATE_LOG_PATH] Cannot create file:{}/ml/x/_delta_log",
        "Mkdirs failed to create file:{}/ml/x (exists=false, cwd=file:/)",
    ],
)
def test_a_folder_that_was_not_made_is_denied_only_where_this_user_may_not_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    error = RuntimeError(text.format(tmp_path))
    assert denied(error, [str(tmp_path)]) is None
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)
    assert f"{tmp_path}/ml/x" in str(denied(error, [str(tmp_path)]))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("java.io.FileNotFoundException: /srv/lake-of-others/a (Permission denied)"),
        RuntimeError(f"java.io.FileNotFoundException: {LAKE}/a (No such file or directory)"),
        caused(
            ConfigError("sources.events.path: /srv/lake/in/a.csv: Permission denied"), refused("/srv/lake/in/a.csv")
        ),
        PermissionError(errno.EPERM, "Operation not permitted"),
    ],
)
def test_what_is_no_right_of_the_lake_keeps_its_name(error: Exception) -> None:
    assert denied(error, [LAKE]) is None


def test_a_right_that_the_lake_refuses_is_so_named_where_java_throws(spark: SparkSession) -> None:
    jvm = spark._jvm
    assert jvm is not None
    failed = jvm.java.util.concurrent.CompletableFuture()
    cause = jvm.java.io.FileNotFoundException(DENIALS["disk"].split(": ")[1])
    failed.completeExceptionally(jvm.java.io.IOException("x", cause))
    with (
        pytest.raises(ConfigError, match=f"{LAKE}/bronze/events/a.parquet"),
        told(Config.model_validate(SETTINGS | {"lake": LAKE})),
    ):
        failed.get()


S3 = "software.amazon.awssdk.services.s3.model.S3Exception: "
DENIED = "java.nio.file.AccessDeniedException: s3a://b/k: open s3a://b/k at 0 on s3a://b/k"
SPARK = "org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:/a.csv."
CODECS = [
    "not a gzip file",
    "gzip stream CRC failure",
    "stored gzip size doesn't match decompressed size",
    "incorrect data check",
    "invalid code lengths set",
    "invalid distance too far back",
    "unexpected end of stream",
    "crc error",
    "FAILED_TO_UNCOMPRESS(5)",
]
UNREAD = {
    ConnectionFailedError: [
        "org.apache.hadoop.fs.s3a.AWSServiceThrottledException: s3a://b/k: slow\n"
        f"Caused by: {S3}Reduce your request rate. (Service: S3, Status Code: 503, Request ID: x)",
        "org.apache.hadoop.fs.s3a.AWSClientIOException: s3a://b/k: Unable to execute HTTP request\n"
        "Caused by: software.amazon.awssdk.core.exception.SdkClientException: Read timed out",
        "java.net.SocketTimeoutException: Read timed out",
        "java.net.UnknownHostException: minio",
        "javax.net.ssl.SSLHandshakeException: Remote host terminated the handshake",
        "org.apache.hadoop.hdfs.BlockMissingException: Could not obtain block: BP-1:blk_7 file=/a.csv.gz",
        "org.apache.hadoop.ipc.RemoteException(org.apache.hadoop.ipc.StandbyException): not in state standby",
        "java.io.EOFException: End of File Exception between local host is: a; destination host is: b\n"
        "Caused by: java.io.EOFException",
        "java.io.IOException: Stale file handle",
        "java.nio.channels.ClosedByInterruptException",
        "java.io.FileNotFoundException: /a (1).csv (Too many open files)",
        "org.apache.parquet.io.ParquetDecodingException: Can not read value\nCaused by: java.net.ConnectException: no",
        "java.io.IOException: Job aborted\nLost task 0.0 in stage 1.0 (TID 1) (10.0.0.7 executor 3): "
        "java.net.ConnectException: Connection refused\n\tat a.b.C(D.java:1)",
    ],
    ConfigError: [
        f"{DENIED}\nCaused by: {S3}Access Denied (Service: S3, Status Code: 403, Request ID: x)",
        "org.apache.hadoop.security.AccessControlException: Permission denied: user=lake, access=READ, inode=/a",
        "org.apache.hadoop.ipc.RemoteException(org.apache.hadoop.security.AccessControlException): Permission denied",
        "java.io.FileNotFoundException: /a.csv (Permission denied)",
        "java.io.IOException: Illegal file pattern: error parsing regexp",
        'org.apache.hadoop.fs.UnsupportedFileSystemException: No FileSystem for scheme "gs"',
    ],
    type(None): [
        "java.io.EOFException: Unexpected end of input stream",
        "java.io.EOFException",
        *(f"java.io.IOException: {why}" for why in CODECS),
        "java.util.zip.ZipException: Not in GZIP format",
        "com.github.luben.zstd.ZstdIOException: Unknown frame descriptor",
        "java.nio.charset.MalformedInputException: Input length = 1",
        "java.lang.RuntimeException: file:/a.parquet is not a Parquet file. Expected magic number at tail",
        "java.io.IOException: can not read class org.apache.parquet.format.FileMetaData: don't know what type: 15",
        "java.io.FileNotFoundException: File /a (1) does not exist",
        "java.io.FileNotFoundException: /a.csv (Is a directory)",
        "org.apache.spark.sql.AnalysisException: [PATH_NOT_FOUND] Path does not exist: java.net.SocketException",
        "java.lang.IllegalArgumentException: java.net.URISyntaxException: Illegal character in path",
    ],
}


@pytest.mark.parametrize("kind, why", [(kind, why) for kind, texts in UNREAD.items() for why in texts])
def test_whoever_kept_a_file_from_being_read_is_named(kind: type, why: str) -> None:
    """As it is thrown where a header is read, and as the cause of Spark's own exception."""
    for text in (f"An error occurred while calling o1.x.\n: {why}", f": {SPARK}\n\tat a.b.C\nCaused by: {why}"):
        found = unread(RuntimeError(text), "events/a.csv.gz", "shop.yaml, line 5: sources.events.path")
        assert type(found) is kind
        if found:
            assert "events/a.csv.gz: " in str(found) and ("shop.yaml, line 5" in str(found)) is (kind is ConfigError)


def test_so_it_is_where_java_throws(spark: SparkSession) -> None:
    jvm = spark._jvm
    assert jvm is not None
    thrown = {
        ConnectionFailedError: jvm.java.io.IOException("x", jvm.java.net.SocketTimeoutException("Read timed out")),
        ConfigError: jvm.java.io.IOException("x", jvm.java.nio.file.AccessDeniedException("s3a://b/k")),
        type(None): jvm.java.lang.RuntimeException("x", jvm.java.util.zip.ZipException("invalid stored block lengths")),
    }
    for kind, error in thrown.items():
        failed = jvm.java.util.concurrent.CompletableFuture()
        failed.completeExceptionally(error)
        with pytest.raises(Py4JJavaError) as caught:
            failed.get()
        assert type(unread(caught.value, "a.csv", "key")) is kind
