#!/usr/bin/env bash
# Once before Airflow's processes start: its database and settings, the databases of lists and lease, the UI's password.
set -euo pipefail
zone=$(lakerec spark-conf --config "$LAKEREC_CONFIG" --timezone)
if [ "$zone" != "$LAKEREC_TIMEZONE" ]; then
    echo "LAKEREC_TIMEZONE is $LAKEREC_TIMEZONE, the timezone of $LAKEREC_CONFIG is $zone: make them one" >&2
    exit 10
fi
lakerec spark-conf --config "$LAKEREC_CONFIG" --out "$LAKEREC_STATE/spark.conf"
"$LAKEREC_HOME/.venv/bin/python" -c 'import os, lakerec.postgres as server
for name in ("LAKEREC_SERVING_URI", "LAKEREC_LEASE_URI"):
    server.ensure_database(os.environ["LAKEREC_DATABASE"], os.environ[name].rpartition("/")[2])'
"$LAKEREC_HOME/scripts/prepare.sh" "$LAKEREC_CONFIG"
connection=$(lakerec spark-conf --config "$LAKEREC_CONFIG" --connection)
airflow connections delete spark_default >/dev/null 2>&1 || true
airflow connections add spark_default --conn-json "$connection"
umask 077
passwords=$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE
python -c 'import json, os; print(json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}))' >"$passwords"
