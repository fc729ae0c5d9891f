#!/usr/bin/env bash
# End everything scripts/up.sh started, with all descendants (a running Spark job, too), then PostgreSQL.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
processes stop
PYTHONPATH=$LAKEREC_HOME/jobs "$LAKEREC_HOME/.venv/bin/python" -m lakerec.warm stop --state "$STATE"
postgres stop "$STATE/postgres"
say "Airflow and PostgreSQL are down; their data stays in $STATE"
