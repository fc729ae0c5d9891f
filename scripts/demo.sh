#!/usr/bin/env bash
# The main job through Airflow, on simulated days that end yesterday: 14 days as one backfill, a training, one more day.
set -euo pipefail
cd "$(dirname "$0")/.."
# Airflow and PostgreSQL of the demo's own, made anew each time: what `make up` runs is left alone.
export LAKEREC_STATE=$PWD/.lakerec/demo
source scripts/env.sh
DAYS=15
first=$(date -u -d "$DAYS days ago" +%F)
last=$(date -u -d "1 day ago" +%F)
trained=$(date -u -d "2 days ago" +%F)
config=conf/demo.yaml
began=$SECONDS
step() { printf '\n== %s (%s s)\n' "$*" "$((SECONDS - began))"; }

scripts/down.sh >/dev/null 2>&1 || true
if (exec 3<>"/dev/tcp/127.0.0.1/$LAKEREC_PORT") 2>/dev/null; then
    fail "port $LAKEREC_PORT is in use. By make up: make down first, the demo makes lake/demo anew. Else: LAKEREC_PORT=8081 make demo"
fi
rm -rf demo-data lake/demo "$LAKEREC_STATE"
step "simulating $DAYS days of a shop, $first to $last"
.venv/bin/lakerec simulate --out demo-data --start "$first" --days "$DAYS" --users 300 --items 200 --seed 7

step "starting Airflow"
# By hand only: the schedules belong to `make up`.
export LAKEREC_SCHEDULES=off CONFIG=$config
scripts/up.sh
trap 'scripts/down.sh >/dev/null 2>&1 || true' EXIT

step "reco_backfill: 14 days as one chunk"
scripts/trigger.sh reco_backfill --conf "{\"start\": \"$first\", \"end\": \"$last\", \"chunk_days\": 14}"
step "scorer_nightly: fine-tuning the language model"
scripts/trigger.sh scorer_nightly --day "$trained"
step "reco_daily: one more day, $last"
scripts/trigger.sh reco_daily --day "$last"

step "what came out"
.venv/bin/lakerec recommend --config $config
.venv/bin/lakerec metrics --config $config
cat <<END

Where to look next
  tables       lake/demo/gold/recommendations (any Delta reader), docs/tables.md says what each column holds
  data docs    lake/demo/_dq/gx/uncommitted/data_docs/local_site/index.html
  bad rows     lake/demo/quarantine/events, each with the rules it broke
  models       lake/demo/_models, their training in lake/demo/_mlflow/mlflow.db
  Airflow      LAKEREC_STATE=.lakerec/demo LAKEREC_SCHEDULES=off make up shows these runs (it prints URL, user,
               password); LAKEREC_STATE=.lakerec/demo make down ends it
  your data    docs/adding-a-source.md
  took         $((SECONDS - began)) s
END
