"""Resolve Delta's JARs once into .jars/, by Spark's own Ivy with a cache of the project's own.

A half-filled local Maven repository (a POM without its JAR) makes Spark's resolution fail, so it is left aside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyspark

PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
# What Spark does not bring itself: a second copy of Hadoop, Jackson or Parquet only slows the class path down.
OURS = ("io.delta_", "io.unitycatalog_")
JARS = Path(__file__).resolve().parent.parent / ".jars"
STAMP = JARS / f".{PACKAGE.replace(':', '_')}"
IVY_SETTINGS = """<ivysettings><settings defaultResolver="central"/>
<resolvers><ibiblio name="central" m2compatible="true"/></resolvers></ivysettings>"""


def resolve() -> int:
    """Run an empty Spark program that asks for the package; the JARs land below the project's Ivy folder."""
    shutil.rmtree(JARS, ignore_errors=True)
    JARS.mkdir()
    empty, settings = JARS / "empty.py", JARS / "ivysettings.xml"
    empty.write_text("")
    settings.write_text(IVY_SETTINGS)
    home = Path(pyspark.__file__).parent
    command = [str(home / "bin" / "spark-submit"), "--master", "local[1]", "--packages", PACKAGE]
    command += ["--conf", f"spark.jars.ivy={JARS / 'ivy'}", "--conf", "spark.ui.enabled=false"]
    command += ["--conf", f"spark.jars.ivySettings={settings}", str(empty)]
    env = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_HOME": str(home)}
    with (JARS / "log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=env).returncode
    return code


def main() -> int:
    """Resolve unless it was done before; print one line when it starts and a short log when it fails."""
    if STAMP.exists():
        return 0
    print(f"resolving {PACKAGE} into .jars/ (once, about 90 MB)", flush=True)
    if resolve() != 0:
        print("Delta's JARs could not be resolved; the end of .jars/log says why:", file=sys.stderr)
        print("\n".join((JARS / "log").read_text().splitlines()[-8:]), file=sys.stderr)
        return 1
    for jar in (JARS / "ivy" / "jars").glob("*.jar"):
        if jar.name.startswith(OURS):
            jar.rename(JARS / jar.name)
    shutil.rmtree(JARS / "ivy")
    STAMP.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
