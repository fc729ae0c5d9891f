"""The only builder of a SparkSession, and of the properties file that spark-submit reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from lakerec.config import Config
from lakerec.errors import ConfigError

HOME = Path(os.environ.get("LAKEREC_HOME", Path(__file__).resolve().parents[2]))
JARS = HOME / ".jars"
ARCHIVE = JARS / "lakerec.jsa"

# Serial GC and the first compiler tier: a job's fixed cost on 2 cores falls from 36 s to 24 s.
# -Xshare with an archive of Spark's classes takes off more; a missing or foreign archive is ignored by the JVM.
FAST_START = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xlog:disable", "-Xlog:all=off"]
# On a year of invoices the first compiler tier alone takes 1.2 times as long as all tiers; on a day it saves 4 s.
MANY_DAYS = 60

BASE = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # A value that does not parse becomes NULL and is quarantined; under ANSI one such value ends the job.
    "spark.sql.ansi.enabled": "false",
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
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.python.worker.reuse": "true",
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    "spark.sql.debug.maxToStringFields": "100",
}
LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "8",
    "spark.default.parallelism": "2",
    "spark.shuffle.compress": "true",
    "spark.sql.catalogImplementation": "in-memory",
    # VACUUM lists folders in as many tasks; the default of 10,000 takes it 25 s for a table of ten files.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
}


def properties(config: Config, days: int = 1) -> dict[str, str]:
    """Every Spark property of a deployment; `spark.properties` of the YAML has the last word.

    The session's zone is the configuration's: a time without a zone is the shop's, and so is a day.
    A session for many `days` lets the JVM compile in full: its work outlasts the compiler's.
    """
    spark = config.spark
    local = spark.master.startswith("local")
    built = {"spark.master": spark.master, "spark.driver.memory": spark.driver_memory, **BASE}
    built["spark.sql.session.timeZone"] = config.timezone
    built |= _local(spark.fast_start, days) if local else {"spark.jars": ",".join(map(str, delta_jars()))}
    return built | spark.properties


def _local(fast_start: bool, days: int) -> dict[str, str]:
    log4j = f"-Dlog4j2.configurationFile={HOME / 'jobs/lakerec/log4j2.properties'}"
    options = [log4j, *(FAST_START if fast_start else [])]
    if fast_start and days < MANY_DAYS:
        options.append("-XX:TieredStopAtLevel=1")
    if fast_start and ARCHIVE.exists():
        options.append(f"-XX:SharedArchiveFile={ARCHIVE}")
    if extra := os.environ.get("LAKEREC_JAVA_OPTIONS"):
        options.append(extra)
    # On the class path, not in spark.jars: the class-data archive covers only the former.
    jars = os.pathsep.join(map(str, delta_jars()))
    built = {**LOCAL, "spark.driver.extraClassPath": jars, "spark.driver.extraJavaOptions": " ".join(options)}
    # local-cluster has executors of its own; local has none, and reads neither.
    return built | {"spark.executor.extraClassPath": jars, "spark.executor.extraJavaOptions": log4j}


def delta_jars() -> list[Path]:
    """Delta's JARs of the project's own folder, sorted; raises ConfigError where they were never resolved."""
    jars = sorted(JARS.glob("*.jar"))
    if not jars:
        raise ConfigError(f"{JARS} has no JARs; run 'make install' once in {HOME}")
    return jars


def build_session(config: Config, name: str, days: int = 1) -> SparkSession:
    """The process's only session, for a job over so many days; raises ConfigError without Java 17 or JARs."""
    check_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if config.spark.master.startswith("local"):  # executors on other machines must reach the driver
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(name)
    for key, value in properties(config, days).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def task_threads(spark: SparkSession) -> int:
    """How many threads a task may use: Spark's own count of cores per task."""
    return int(spark.conf.get("spark.task.cpus", "1") or 1)


def check_java() -> None:
    """Raise ConfigError with the way out where Java 17 or later is not to be found."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit: a JVM runs already
        return
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
    lines = [f"{key} {value}" for key, value in sorted(properties(config).items())]
    file.write_text("\n".join(lines) + "\n")
