#!/usr/bin/env bash
# End everything scripts/up.sh started, with all descendants (a running Spark job, too), then PostgreSQL.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
processes stop
postgres stop "$STATE/postgres"
say "Airflow and PostgreSQL are down; their data stays in $STATE"
