# The environment of Airflow on one machine: sourced by up.sh, down.sh and trigger.sh.
# LAKEREC_HOME   the project (default: the folder above this one)
# LAKEREC_PORT   the port of the UI (default 8080); `make down` and `make up` again after changing it
# LAKEREC_STATE  where Airflow's and PostgreSQL's data lie (default .lakerec)
# LAKEREC_TIMEZONE   the same as the configuration's `timezone` (default: what the last `make up` read there)
umask "$(printf %03o $((8#$(umask) | 8#027)))"  # what Airflow and its tasks write is closed to others
LAKEREC_HOME=${LAKEREC_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
LAKEREC_PORT=${LAKEREC_PORT:-8080}
STATE=$(realpath -m "${LAKEREC_STATE:-$LAKEREC_HOME/.lakerec}")
LAKEREC_STATE=$STATE
LAKEREC_TIMEZONE=${LAKEREC_TIMEZONE:-$(cat "$STATE/timezone" 2>/dev/null || echo UTC)}
URL=http://127.0.0.1:$LAKEREC_PORT

export LAKEREC_HOME LAKEREC_STATE LAKEREC_PORT LAKEREC_TIMEZONE
export PATH=$LAKEREC_HOME/.venv-airflow/bin:$PATH
export AIRFLOW_HOME=$STATE/airflow
export AIRFLOW__CORE__DAGS_FOLDER=$LAKEREC_HOME/dags
export AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__EXECUTOR=LocalExecutor
export AIRFLOW__CORE__PARALLELISM=4             # the default starts 32 worker processes
export AIRFLOW__CORE__DEFAULT_TIMEZONE=$LAKEREC_TIMEZONE  # what `airflow backfill --from-date 2024-03-01` means
export AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=False
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS=admin:admin
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL=$URL/execution/
export AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT=60   # the default, 5 s, is short while Spark has all the cores
export AIRFLOW__API__HOST=127.0.0.1
export AIRFLOW__API__PORT=$LAKEREC_PORT
export AIRFLOW__API__BASE_URL=$URL
export AIRFLOW__API__EXPOSE_CONFIG=False
export AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL=30
# A file that has changed is read at the next refresh all the same; to read all anew each 30 s takes a sixth of a core.
export AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL=300
export AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS=True  # else a green task that is cleared takes its driver on a cluster for done
export AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK=False
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False

postgres() { PYTHONPATH=$LAKEREC_HOME/jobs "$LAKEREC_HOME/.venv/bin/python" -m lakerec.postgres "$@"; }
# Start PostgreSQL if need be and point Airflow at its database there.
use_database() {
    local uri
    uri=$(postgres start "$STATE/postgres" airflow) || exit 1
    export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgresql+psycopg2${uri#postgresql}
}
say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
processes() { "$LAKEREC_HOME/.venv-airflow/bin/python" "$LAKEREC_HOME/scripts/processes.py" "$AIRFLOW_HOME/processes" "$@"; }
