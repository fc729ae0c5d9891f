#!/usr/bin/env bash
# Both environments from the pinned files, Java, Delta's JARs, the class-data archive. Each part is done once:
# a stamp in .make/ holds the hash of what it was made from.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .make
# Else each first process compiles what it imports, and every one does where PYTHONDONTWRITEBYTECODE is set: that doubles
# the start of a training, of a Spark worker and of an Airflow task.
export UV_COMPILE_BYTECODE=1

# part NAME FILE... -- COMMAND...: run the command unless it ran before on the same files. set -e does not hold in a
# command whose failure is looked at: its lines are one chain of &&.
part() {
    local name=$1 files=() stamp began
    shift
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    stamp=$(cat "${files[@]}" | cksum)
    [ "$(cat ".make/$name" 2>/dev/null)" = "$stamp" ] && return 0
    began=$SECONDS
    echo "install: $name ..." >&2
    "$@" || { echo "install: $name failed" >&2; exit 1; }
    echo "$stamp" >".make/$name"
    echo "install: $name done in $((SECONDS - began)) s" >&2
}

python311() {
    for name in python3.11 python3 python; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    echo "lakerec needs Python 3.11: install it (python3.11) and run make again" >&2
    return 1
}

make_uv() { "$PYTHON" -m venv .make/env && .make/env/bin/python -m pip install --quiet uv==0.13.9 && mkdir -p .make/bin && ln -sf ../env/bin/uv .make/bin/uv; }
make_jobs() {
    .make/bin/uv venv --quiet --clear --python "$PYTHON" .venv &&
    .make/bin/uv pip install --python .venv/bin/python ${TORCH:+--torch-backend "$TORCH"} -r requirements/dev.txt &&
    .make/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
}
make_airflow() {
    .make/bin/uv venv --quiet --clear --python "$PYTHON" .venv-airflow &&
    .make/bin/uv pip install --python .venv-airflow/bin/python -r requirements/airflow.txt
}

make_moto() {
    .make/bin/uv venv --quiet --clear --python "$PYTHON" .venv-moto &&
    .make/bin/uv pip install --quiet --python .venv-moto/bin/python -r requirements/moto.txt
}

java_is_there() {
    local java=${JAVA_HOME:+$JAVA_HOME/bin/}java version
    version=$("$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p') || return 1
    [ "${version:-0}" -ge 17 ]
}
find_java() {
    java_is_there && return 0
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq openjdk-17-jre-headless >/dev/null && java_is_there && return 0
    fi
    echo "lakerec needs Java 17 or later: install it (apt install openjdk-17-jre-headless, brew install openjdk@17) or set JAVA_HOME" >&2
    return 1
}

PYTHON=$(python311)
find_java
part uv scripts/install.sh -- make_uv
part environment requirements/dev.txt pyproject.toml -- make_jobs
part airflow-environment requirements/airflow.txt -- make_airflow
[ -d .jars ] || rm -f .make/jars .make/class-archive
part jars scripts/jars.py -- .venv/bin/python scripts/jars.py
part class-archive scripts/jars.py scripts/archive.py jobs/lakerec/session.py -- .venv/bin/python scripts/archive.py
# Only where it is asked for: scripts/install.sh moto
if [ "${1:-}" = moto ]; then part moto requirements/moto.txt -- make_moto; fi
