#!/usr/bin/env bash
# Run a DAG on the running Airflow and wait for its end; exit code 0 only on success.
# scripts/trigger.sh DAG_ID [--day 2024-03-01 | --conf JSON]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec python "$LAKEREC_HOME/scripts/trigger.py" --url "$URL" \
    --passwords "$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated" "$@"
