"""Resolve JARs once into .jars/, by Spark's own Ivy with a cache of the project's own: jars.py [delta | aws | lineage].

A half-filled local Maven repository (a POM without its JAR) makes Spark's resolution fail, so it is left aside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyspark

SPARK = Path(pyspark.__file__).parent
JARS = Path(__file__).resolve().parent.parent / ".jars"
IVY_SETTINGS = """<ivysettings><settings defaultResolver="central"/>
<resolvers><ibiblio name="central" m2compatible="true"/></resolvers></ivysettings>"""


@dataclass(frozen=True)
class Jars:
    """What to resolve, which of what comes along is kept (by how its name begins), where, and about how many MB."""

    package: str
    ours: tuple[str, ...]
    folder: Path
    size: int

    @property
    def stamp(self) -> Path:
        """The file that says they are there."""
        return self.folder / f".{self.package.replace(':', '_')}"


def hadoop() -> str:
    """The version of the Hadoop that Spark brings: its S3 client must be of the same."""
    (jar,) = (SPARK / "jars").glob("hadoop-client-api-*.jar")
    return jar.stem.removeprefix("hadoop-client-api-")


# What Spark does not bring itself: a second copy of Hadoop, Jackson or Parquet only slows the class path down.
DELTA = Jars("io.delta:delta-spark_4.2_2.13:4.4.0", ("io.delta_", "io.unitycatalog_"), JARS, 90)
SDK = ("org.apache.hadoop_hadoop-aws-", "software.amazon.", "org.wildfly.openssl_")
LISTENER = Jars("io.openlineage:openlineage-spark_2.13:1.37.0", ("io.openlineage_",), JARS / "lineage", 33)
AWS = Jars(f"org.apache.hadoop:hadoop-aws:{hadoop()}", SDK, JARS / "s3", 690)
KINDS = {"delta": DELTA, "aws": AWS, "lineage": LISTENER}


def resolve(jars: Jars) -> int:
    """Run an empty Spark program that asks for the package; the JARs land below the folder's Ivy folder."""
    folder = jars.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    empty, settings = folder / "empty.py", folder / "ivysettings.xml"
    empty.write_text("")
    settings.write_text(IVY_SETTINGS)
    command = [str(SPARK / "bin" / "spark-submit"), "--master", "local[1]", "--packages", jars.package]
    command += ["--conf", f"spark.jars.ivy={folder / 'ivy'}", "--conf", "spark.ui.enabled=false"]
    command += ["--conf", f"spark.jars.ivySettings={settings}", str(empty)]
    env = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_HOME": str(SPARK)}
    with (folder / "log").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=log, env=env).returncode


def main(kind: str = "delta") -> int:
    """Resolve unless it was done before; print one line when it starts and a short log when it fails."""
    jars = KINDS[kind]
    if jars.stamp.exists():
        return 0
    print(f"resolving {jars.package} into {jars.folder.name}/ (once, about {jars.size} MB)", flush=True)
    if resolve(jars) != 0:
        print(f"the JARs could not be resolved; the end of {jars.folder / 'log'} says why:", file=sys.stderr)
        print("\n".join((jars.folder / "log").read_text().splitlines()[-8:]), file=sys.stderr)
        return 1
    for jar in (jars.folder / "ivy" / "jars").glob("*.jar"):
        if jar.name.startswith(jars.ours):
            jar.rename(jars.folder / jar.name)
    shutil.rmtree(jars.folder / "ivy")
    jars.stamp.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
