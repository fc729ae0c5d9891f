#!/usr/bin/env bash
# Airflow's database brought up to date, and what the DAGs look up there: scripts/prepare.sh DEPLOYMENT.yaml
set -euo pipefail
airflow db migrate
airflow variables set lakerec_config "$1"
airflow pools set lake 1 "jobs that write to the lake: one at a time"
airflow pools set gpu 1 "jobs that train or evaluate a model"
