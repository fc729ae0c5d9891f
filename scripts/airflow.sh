#!/usr/bin/env bash
# Airflow's own command line on what scripts/up.sh started, for example:
# scripts/airflow.sh backfill create --dag-id reco_daily --from-date 2024-03-01 --to-date 2024-04-01
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
use_database
exec airflow "$@"
