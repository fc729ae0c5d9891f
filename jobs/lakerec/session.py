"""The only builder of a SparkSession, and of the properties file that spark-submit reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import DataFrame, Row, SparkSession

from lakerec import lineage
from lakerec.config import Config
from lakerec.errors import ConfigError
from lakerec.package import write_package

HOME = Path(os.environ.get("LAKEREC_HOME", Path(__file__).resolve().parents[2]))
STATE = Path(os.environ.get("LAKEREC_STATE", HOME / ".lakerec"))
JARS = HOME / ".jars"
ARCHIVE = JARS / "lakerec.jsa"
PACKAGE = STATE / "lakerec.zip"


def _option(flag: str, path: Path) -> str:
    """A JVM option that names a file; Spark splits options at blanks as a shell does."""
    return f'{flag}"{path}"' if " " in str(path) else f"{flag}{path}"


LOG4J = _option("-Dlog4j2.configurationFile=", HOME / "jobs/lakerec/log4j2.properties")
DEPLOY_MODE = "spark.submit.deployMode"
ONE_ATTEMPT = {"spark.yarn.maxAppAttempts": "1"}  # Airflow tries again, and knows which exit codes are worth it
# A driver that gives up over lost executors exits with 11, as for a fault of a source, and is not tried again. Before
# so many are lost in an hour, tasks that lost theirs four times have failed their stage, by an error with a name.
PATIENT = {"spark.executor.maxNumFailures": "100", "spark.executor.failuresValidityInterval": "1h"}
# Keys of Airflow's Spark connection, and the properties that say the same.
CONNECTION = {
    "deploy-mode": DEPLOY_MODE,
    "namespace": "spark.kubernetes.namespace",
    "queue": "spark.yarn.queue",
    "yarn_resourcemanager_webapp_address": "spark.hadoop.yarn.resourcemanager.webapp.address",
}
# Serial GC and the first compiler tier: a job's fixed cost on 2 cores falls from 36 s to 24 s.
# -Xshare with an archive of Spark's classes takes off more; a missing or foreign archive is ignored by the JVM.
FAST_START = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xlog:disable", "-Xlog:all=off"]
# On a year of invoices in one session the first compiler tier alone takes 1.2 times as long as all tiers; on a day it
# saves 4 s. A submit of one step is too short for more, whatever its days: it takes .75 times as long with the first.
MANY_DAYS = 60
LOCAL_CORES = re.compile(r"local(?:\[(\d+|\*)(?:,.*)?\])?$")  # local, local[4], local[*], local[4,2]: its threads

LISTS = ("spark.extraListeners", "spark.jars")

BASE = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # A value that does not parse becomes NULL and is quarantined; under ANSI one such value ends the job.
    "spark.sql.ansi.enabled": "false",
    # What Hadoop writes for itself is closed to others than owner and group, as the umask closes the rest.
    "spark.hadoop.fs.permissions.umask-mode": "027",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
    "spark.sql.adaptive.advisoryPartitionSizeInBytes": "16m",
    "spark.databricks.delta.snapshotPartitions": "1",
    # Two commits a table and upkeep that say nothing.
    "spark.databricks.delta.vacuum.logging.enabled": "false",
    "spark.databricks.delta.properties.defaults.minReaderVersion": "1",
    "spark.databricks.delta.properties.defaults.minWriterVersion": "2",
    "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "512",
    # Spark hides what looks like a secret where it shows its properties; "apiKey" is one, too.
    "spark.redaction.regex": "(?i)secret|password|token|access[.]?key|api[._]?key",
    "spark.python.worker.faulthandler.enabled": "true",
    # Each function of a column would look for the line that called it, for messages that nobody reads.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
    "spark.python.worker.reuse": "true",
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    "spark.sql.debug.maxToStringFields": "100",
}
LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.shuffle.compress": "true",
    "spark.sql.catalogImplementation": "in-memory",
    "spark.python.daemon.module": "lakerec.daemon",  # on a cluster the package reaches workers, not their daemon
    # Delta writes a version's checksum by it. The default renames by Hadoop's FileContext, which without Hadoop's
    # native library starts a process (readlink) for each look at a file.
    "spark.sql.streaming.checkpointFileManagerClass": (
        "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
    ),
    # VACUUM lists folders in as many tasks; the default of 10,000 takes it 25 s for a table of ten files.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
}


def properties(config: Config, days: int = 1) -> dict[str, str]:
    """Every Spark property of a deployment; `spark.properties` of the YAML has the last word, and adds to LISTS.

    A session for many `days` lets the JVM compile in full: its work outlasts the compiler's.
    """
    spark = config.spark
    built = {"spark.master": spark.master, "spark.driver.memory": spark.driver_memory, **_defaults(config)}
    built |= _local(config, days) if _is_local(config) else _cluster(config, days)
    built |= lineage.listener(config) | _workers(spark.properties)
    # For the DAGs, which read the file and not the YAML.
    built["spark.lakerec.reuse"] = str(spark.reuse).lower()
    built |= {f"spark.lakerec.{name}": f"{minutes:g}" for name, minutes in config.airflow}
    both = {key: f"{built[key]},{spark.properties[key]}" for key in LISTS if key in built and key in spark.properties}
    return built | spark.properties | both


def _workers(known: Mapping[str, str]) -> dict[str, str]:
    """A Python worker a task where an executor has more GPUs than a task: CUDA stays with the first it was shown.

    Such a worker loads the model for its bucket alone; of an executor of one GPU it loads it once.
    """
    own, task = (float(known.get(f"spark.{part}.resource.gpu.amount", 0)) for part in ("executor", "task"))
    return {"spark.python.worker.reuse": "false"} if own > max(task, 1) else {}


def settings(config: Config) -> dict[str, str]:
    """What of the properties a session may still set where spark-submit has made its context: those of SQL."""
    known = _defaults(config) | config.spark.properties
    return {key: value for key, value in known.items() if key.startswith(("spark.sql.", "spark.databricks."))}


def _defaults(config: Config) -> dict[str, str]:
    """The session's zone is the configuration's: a time without a zone is the shop's, and so is a day."""
    built = BASE | {"spark.sql.session.timeZone": config.timezone}
    if not _is_local(config):
        return built
    return built | LOCAL | {"spark.sql.shuffle.partitions": str(max(8, 2 * driver_cores(config)))}


def _is_local(config: Config) -> bool:
    return config.spark.master.startswith("local")


def _local(config: Config, days: int) -> dict[str, str]:
    # On the class path, not in spark.jars: the class-data archive covers only the former. It is of Delta's JARs: behind
    # a further one on the path the JVM leaves it aside.
    jars = os.pathsep.join(map(str, jars_of(config)))
    built = {"spark.driver.extraClassPath": jars, "spark.driver.extraJavaOptions": _driver_options(config, days)}
    if LOCAL_CORES.match(config.spark.master):
        built["spark.default.parallelism"] = str(driver_cores(config))
    if listener := listener_jars(config):
        built["spark.jars"] = ",".join(map(str, listener))
    # local-cluster has executors of its own; local has none, and reads neither.
    return built | {"spark.executor.extraClassPath": jars, "spark.executor.extraJavaOptions": LOG4J}


def _cluster(config: Config, days: int) -> dict[str, str]:
    """What executors need beside a Python environment; their JVMs keep Spark's own flags, logging and memory."""
    jars = jars_of(config) + listener_jars(config)
    flags = {"spark.driver.extraJavaOptions": _driver_options(config, days)}
    if config.spark.master.startswith("k8s://"):  # the image holds the project, at the path of whoever submits
        return {"spark.jars": ",".join(f"local://{jar}" for jar in jars), **PATIENT, **flags}
    shipped = {"spark.jars": ",".join(map(str, jars)), "spark.submit.pyFiles": str(PACKAGE), **ONE_ATTEMPT}
    if config.spark.master == "yarn":
        shipped |= PATIENT
    # A driver of a cluster's machine has no file of this one that its JVM's flags may name.
    return shipped if config.spark.properties.get(DEPLOY_MODE) == "cluster" else shipped | flags


def _driver_options(config: Config, days: int) -> str:
    options = [LOG4J, *(FAST_START if config.spark.fast_start else [])]
    if config.spark.fast_start and days < MANY_DAYS:
        options.append("-XX:TieredStopAtLevel=1")
    if config.spark.fast_start and ARCHIVE.exists():
        options.append(_option("-XX:SharedArchiveFile=", ARCHIVE))
    if extra := os.environ.get("LAKEREC_JAVA_OPTIONS"):
        options.append(extra)
    return " ".join(options)


def delta_jars() -> list[Path]:
    """Delta's JARs of the project's own folder, sorted; raises ConfigError where they were never resolved."""
    return _jars(JARS, "install")


def jars_of(config: Config) -> list[Path]:
    """Delta's JARs, and those of s3a:// where the YAML has such a path; ConfigError where they were never resolved."""
    return delta_jars() + (_jars(JARS / "s3", "install-aws") if config.on_s3 else [])


def listener_jars(config: Config) -> list[Path]:
    """OpenLineage's listener where the YAML wants it; ConfigError where it was never resolved."""
    return _jars(JARS / "lineage", "install-lineage") if config.lineage.spark else []


def _jars(folder: Path, target: str) -> list[Path]:
    found = sorted(folder.glob("*.jar"))
    if not found:
        raise ConfigError(f"{folder} has no JARs; run 'make {target}' once in {HOME}")
    return found


def build_session(config: Config, name: str, days: int = 1) -> SparkSession:
    """The process's only session, for a job over so many days; raises ConfigError without Java 17 or JARs.

    Where spark-submit has started the JVM the context is made of its properties, and of the SQL settings of now.
    """
    known = settings(config) if _submitted() else _own_properties(config, days)
    if of_run := lineage.listener_of_run(config):
        _into_jvm(of_run, known)
    builder = SparkSession.builder.appName(name)
    for key, value in known.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    if not _is_local(config):
        hadoop: Any = session.sparkContext._jsc.hadoopConfiguration()  # type: ignore[attr-defined]
        refuse_bare_paths(config, str(hadoop.get("fs.defaultFS")))
    return session


def refuse_bare_paths(config: Config, default: str) -> None:
    """ConfigError where Hadoop would look for a folder of the YAML on its default file system, which is no disk."""
    if default.startswith("file:"):
        return
    sources = [(("sources", name, "path"), source.path) for name, source in config.sources if source]
    for keys, place in [(("lake",), config.lake), *sources]:
        if place and "://" not in place:
            raise ConfigError(
                f"{config.where(*keys)}: {place} says no file system, and the cluster's default is {default}: "
                "begin it with one (s3a://, hdfs://); for folders that all machines mount set "
                "spark.properties: {spark.hadoop.fs.defaultFS: 'file:///'}"
            )


def _into_jvm(of_run: dict[str, str], known: dict[str, str]) -> None:
    """Set what may be secret in the JVM itself: PySpark puts a builder's properties on its command line."""
    SparkContext._ensure_initialized(conf=SparkConf(loadDefaults=False).setAll([*known.items()]))
    jvm: Any = SparkContext._jvm
    for key, value in of_run.items():
        jvm.java.lang.System.setProperty(key, value)


def _own_properties(config: Config, days: int) -> dict[str, str]:
    """The properties of a JVM that this process is about to start."""
    check_java()
    # PySpark looks for the executors' Python here, not among the properties.
    os.environ.setdefault("PYSPARK_PYTHON", config.spark.properties.get("spark.pyspark.python", sys.executable))
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if _is_local(config):  # executors on other machines must reach the driver
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return _packed(properties(config, days))


def _submitted() -> bool:
    """Whether spark-submit has started the JVM, and so has the properties (a session here sets the variable, too)."""
    return "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._gateway is None


def _packed(known: dict[str, str]) -> dict[str, str]:
    """Properties whose zip of the package is there, if they name ours."""
    if known.get("spark.submit.pyFiles") == str(PACKAGE):
        write_package(PACKAGE)
    return known


def streamed(frame: DataFrame) -> Iterator[Row]:
    """The rows of a DataFrame in their order, a partition in memory at a time.

    By its RDD: a DataFrame's own iterator runs its jobs when its query counts as ended, and Spark 4.2 then keeps their
    plans and broadcasts (some 32 MiB each) in the driver for good (DAGScheduler.activeQueryToJobs).
    """
    return frame.rdd.toLocalIterator()


def driver_cores(config: Config) -> int:
    """How many cores the driver may use: those of spark.master where that is local, else its machine's."""
    of_machine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    named = LOCAL_CORES.match(config.spark.master)
    return of_machine if named is None or named[1] == "*" else int(named[1] or 1)


def task_threads(spark: SparkSession) -> int:
    """How many threads a task may use: Spark's own count of cores per task."""
    return int(spark.conf.get("spark.task.cpus", "1") or 1)


def check_java() -> None:
    """Raise ConfigError with the way out where Java 17 or later is not to be found."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    known = java is not None and Path(java).exists()
    told = subprocess.run([str(java), "-version"], capture_output=True, text=True).stderr if known else ""
    found = re.search(r'version "(\d+)', told)
    if not found or int(found[1]) < 17:
        which = f"{java} is version {found[1]}" if found else "none was found"
        raise ConfigError(f"Spark needs Java 17 or later and {which}: run 'make install', or set JAVA_HOME")


def write_properties(config: Config, file: Path) -> None:
    """The same properties as a file for `spark-submit --properties-file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} {value}" for key, value in sorted(_packed(properties(config)).items())]
    file.touch(mode=0o600)  # properties are the operator's, and may be secret
    file.chmod(0o600)
    file.write_text("\n".join(lines) + "\n")


def connection(config: Config) -> str:
    """Airflow's Spark connection as JSON: what its operator puts on the command line or asks the cluster itself."""
    known = config.spark.properties
    extra = {name: known[key] for name, key in CONNECTION.items() if key in known}
    return json.dumps({"conn_type": "spark", "host": config.spark.master, "extra": extra})
