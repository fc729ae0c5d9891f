#!/usr/bin/env bash
# Start Airflow with its metadata in the embedded PostgreSQL: CONFIG=conf/demo.yaml scripts/up.sh
# Run it again to start what has ended; without CONFIG it is the one that was started last, and a variable that was set
# then has to be set now (FORGET=yes: it is not wanted any more). With another CONFIG what runs is restarted.
# scripts/down.sh ends all of it.
set -euo pipefail
# The names of what the caller has set: keys, connections. Not what is meant for one start.
given=$(env | grep -oE '^(LAKEREC_|AIRFLOW_|AWS_|OPENLINEAGE_|PG)[A-Za-z0-9_]*' |
    grep -vxE 'LAKEREC_(HOME|PORT|SCHEDULES|STATE|TIMEZONE)' | LC_ALL=C sort || true)
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$LAKEREC_HOME/scripts/lineage.sh"
last=$(cat "$STATE/config" 2>/dev/null || true)
CONFIG=$(realpath -m "${CONFIG:-${last:-$LAKEREC_HOME/conf/demo.yaml}}")
[ -f "$CONFIG" ] || fail "there is no configuration $CONFIG: pass CONFIG=FILE"
if [ "$CONFIG" = "$last" ] && [ "${FORGET:-}" != yes ]; then
    missing=$( (LC_ALL=C comm -23 "$STATE/environment" <(echo "$given") 2>/dev/null || true) | xargs)
    [ -z "$missing" ] ||
        fail "Airflow was started with $missing in the environment, and now without: set them, or make up FORGET=yes"
fi
command -v airflow >/dev/null || fail "there is no Airflow in $LAKEREC_HOME/.venv-airflow: run make install"

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$LAKEREC_PORT") 2>/dev/null; }
# Whether all parts named report themselves healthy.
healthy() { curl -fsS -m 5 "$URL/api/v2/monitor/health" 2>/dev/null | python -c '
import json, sys
health = json.load(sys.stdin)
sys.exit(any(health[part]["status"] != "healthy" for part in sys.argv[1:]))' "$@" 2>/dev/null; }
# await NAME PART...: wait until the parts are healthy; fails if the process NAME ends before.
await() {
    local name=$1
    for _ in $(seq 90); do
        if healthy "${@:2}"; then say " ok" && return; fi
        processes alive "$name" || { tail -20 "$AIRFLOW_HOME/processes/$name.log" >&2; fail "$name has ended"; }
        printf '.' >&2
        sleep 2
    done
    fail "not healthy after 3 minutes: ${*:2}; see $AIRFLOW_HOME/processes/$name.log"
}

if ! processes alive api-server && port_is_taken; then
    fail "port $LAKEREC_PORT is in use by another program: choose one with LAKEREC_PORT=8081 make up"
fi
mkdir -p "$AIRFLOW_HOME"
chmod 700 "$AIRFLOW_HOME"
LAKEREC_TIMEZONE=$("$LAKEREC_HOME/.venv/bin/lakerec" spark-conf --config "$CONFIG" --timezone)
export LAKEREC_TIMEZONE AIRFLOW__CORE__DEFAULT_TIMEZONE=$LAKEREC_TIMEZONE
use_lineage "$CONFIG"
echo "$LAKEREC_TIMEZONE" >"$STATE/timezone"
export AIRFLOW_VAR_LAKEREC_CONFIG=$CONFIG  # deadlines' callbacks may not read the database's
"$LAKEREC_HOME/.venv/bin/lakerec" spark-conf --config "$CONFIG" --out "$STATE/spark.conf"
# The operator says the master on spark-submit's command line.
AIRFLOW_CONN_SPARK_DEFAULT=${AIRFLOW_CONN_SPARK_DEFAULT:-$("$LAKEREC_HOME/.venv/bin/lakerec" spark-conf --config "$CONFIG" --connection)}
export AIRFLOW_CONN_SPARK_DEFAULT

say "starting PostgreSQL ..."
use_database
# A database for each deployment: another deployment's lists are not this one's to replace.
serving=$(python -c 'import sys, yaml
print((yaml.safe_load(open(sys.argv[1])).get("serving") or {}).get("uri_env") or "LAKEREC_SERVING_URI")' "$CONFIG")
lists=${!serving:+the server of $serving}
if [ -z "$lists" ]; then
    [ "$serving" = LAKEREC_SERVING_URI ] || fail "the variable $serving is not set, which serving.uri_env of $CONFIG names"
    deployment=$(basename "$CONFIG" .yaml | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9\n' _)_$(sha256sum <<<"$CONFIG" | cut -c1-6)
    LAKEREC_SERVING_URI=$(postgres start "$STATE/postgres" "serving_$deployment")
    export LAKEREC_SERVING_URI
fi

# Airflow's processes keep the environment that they were started with.
rotating=${AWS_SESSION_TOKEN:+AWS_(SESSION_TOKEN|ACCESS_KEY_ID|SECRET_ACCESS_KEY|CREDENTIAL_EXPIRATION)=}  # by the hour
named=$({ grep -oE "_env['\"]?[[:space:]]*:[[:space:]]*['\"]?[A-Za-z_][A-Za-z0-9_]*" "$CONFIG" || true; } |
    sed -E "s/.*[^A-Za-z0-9_]/|/; s/\$/=/" | tr -d '\n')  # variables that the YAML names: uri_env: SHOP_DB
settings=$({ echo "$CONFIG"; env | grep -E "^(LAKEREC_|AIRFLOW_|AWS_|OPENLINEAGE_|PG|JAVA_HOME=$named)" |
    grep -vE "^(${rotating:-#})" | sort; } | sha256sum)
if [ -f "$AIRFLOW_HOME/settings" ] && [ "$(cat "$AIRFLOW_HOME/settings")" != "$settings" ]; then
    say "the settings have changed: ending what runs with the old ones ..."
    processes stop
fi
echo "$settings" >"$AIRFLOW_HOME/settings"
echo "$CONFIG" >"$STATE/config"
echo "$given" >"$STATE/environment"

say "preparing Airflow's database ..."
"$LAKEREC_HOME/scripts/prepare.sh" "$CONFIG" >"$AIRFLOW_HOME/setup.log" 2>&1 ||
    fail "Airflow's database could not be prepared: see $AIRFLOW_HOME/setup.log"

printf 'starting the API server ' >&2
processes start api-server airflow api-server
await api-server metadatabase
# Only now: tasks that begin before the API server answers are lost.
printf 'starting scheduler, dag-processor and triggerer ' >&2
processes start scheduler airflow scheduler --skip-serve-logs
processes start dag-processor airflow dag-processor
processes start triggerer airflow triggerer --skip-serve-logs

await scheduler scheduler
await dag-processor dag_processor
await triggerer triggerer

password=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["admin"])' \
    "$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated")
chmod 600 "$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated"
say "Airflow is up with $CONFIG"
# Not the embedded server's URI: its password is that of a superuser, of Airflow's database as well.
printf 'URL       %s\nuser      admin\npassword  %s\nlists     %s\n' "$URL" "$password" \
    "${lists:-database ${LAKEREC_SERVING_URI##*/} of the server whose URI is in $STATE/postgres/uri}"
