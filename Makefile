# lakerec: `make demo` and `make test` do all the set-up on a machine that has Python 3.11 and make.
SHELL := /bin/bash
CONFIG ?=
TORCH ?=
WORKERS ?= 2

.PHONY: help demo test test-long test-faults test-aws test-lineage install install-aws install-lineage up down trigger lint audit format bench-ingest bench-start bench-day bench-backfill bench-year bench-candidates bench-scoring bench-quality bench-language-model docs requirements clean

help:            ## what can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: install    ## set up, run the main job through Airflow on simulated days, print a list
	@scripts/demo.sh

test: install    ## the test suite in two processes (under 20 minutes on 2 cores); WORKERS=4, 4 GiB each
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not long and not faults"

test-long: install  ## what takes longer: a month of the real files, a cluster on this machine
	@.venv/bin/python -m pytest -m long

test-faults: install  ## what kills processes, fills disks and breaks models, and looks at what is left
	@.venv/bin/python -m pytest -m faults

test-aws: install-aws  ## a lake on a local S3 server
	@scripts/install.sh moto && .venv/bin/python -m pytest tests/jobs/test_s3.py

test-lineage: install-lineage  ## columns as Spark's OpenLineage listener tells them
	@.venv/bin/python -m pytest tests/jobs/test_lineage.py

install:         ## both environments, Java, Delta's JARs, the class-data archive (quick when done)
	@TORCH=$(TORCH) scripts/install.sh

install-aws: install  ## Hadoop's S3 client and the AWS SDK, for paths that begin with s3a:// (690 MB)
	@.venv/bin/python scripts/jars.py aws

install-lineage: install  ## OpenLineage's listener for Spark, for `lineage.spark` of the YAML (33 MB)
	@.venv/bin/python scripts/jars.py lineage

up: install      ## start Airflow with the DAGs on their schedules; CONFIG=conf/yours.yaml, without: the last one, or the demo's
	@CONFIG=$(CONFIG) scripts/up.sh

down:            ## end every process that `make up` started
	@scripts/down.sh

trigger:         ## run a DAG and wait: make trigger DAG=reco_daily ARGS="--day 2026-01-15"
	@scripts/trigger.sh $(DAG) $(ARGS)

lint: install    ## style, types, and the arrows between the rooms
	@.venv/bin/ruff check . && .venv/bin/ruff format --check --quiet . && .venv/bin/mypy && .venv/bin/lint-imports --no-cache

audit: install   ## known faults of the pinned packages; exit code 3 where the database of faults does not answer
	@.venv/bin/python scripts/audit.py requirements/jobs.txt requirements/dev.txt requirements/airflow.txt \
	  requirements/airflow-cluster.txt requirements/moto.txt

format: install  ## let ruff write the style
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet .

bench-ingest: install  ## ingest and conform beside plain Spark, on the real files
	@.venv/bin/python benchmarks/speed/ingest.py

bench-start: install   ## a Spark job's fixed cost: start to first committed write
	@.venv/bin/python benchmarks/speed/start.py

bench-day: install     ## a day through Airflow, a bar per task: one submit each, and in one warm driver
	@.venv/bin/python benchmarks/speed/day.py

bench-backfill: install  ## a year of real invoices by reco_backfill beside one `lakerec run`
	@.venv/bin/python benchmarks/speed/backfill.py $(ARGS)

bench-year: install    ## 365 days one by one with weekly upkeep: does a day of the last week cost more? ARGS="--days 60"
	@.venv/bin/python benchmarks/speed/year.py $(ARGS)

bench-candidates: install  ## a person's candidates by the size of the catalogue, both ways
	@OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.speed.candidates $(ARGS)

bench-scoring: install  ## slate scoring, retrieval and fine-tuning beside their peers; WORK=cross-encoder for one
	@.venv/bin/python -m benchmarks.speed.scoring $(WORK) $(ARGS)

bench-quality: install  ## every model's quality on the public data: hours; DATA=ml_latest_small ARGS=--validation
	@.venv/bin/python -m benchmarks.quality.run $(DATA) $(ARGS)

bench-language-model: install  ## what the language model adds to the ranker on public data; a GPU makes it minutes
	@.venv/bin/python -m benchmarks.quality.language_model $(DATA) $(ARGS)

docs: install    ## docs/tables.md from the DDL, docs/quality.md from the last results
	@.venv/bin/python scripts/tables_md.py && .venv/bin/python scripts/quality_md.py

requirements: install  ## pin requirements/*.in anew
	@for f in jobs dev airflow airflow-cluster moto; do .make/bin/uv pip compile -q --upgrade --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links requirements/$$f.in -o requirements/$$f.txt; done

clean:           ## end what runs here, remove what make has built; with ALL=yes lakes, demo data and Airflow's history, too
	@for state in .lakerec .lakerec/demo; do LAKEREC_STATE=$$state scripts/down.sh >/dev/null 2>&1 || true; done
	@for place in lake/*/_serving; do .venv/bin/python -m lakerec.postgres stop $$place >/dev/null 2>&1 || true; done
	@rm -rf .venv .venv-airflow .venv-moto .make .jars .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
	  spark-warehouse metastore_db derby.log *.egg-info jobs/*.egg-info && find . -name __pycache__ -prune -exec rm -rf {} +
	@if [ "$(ALL)" = yes ]; then rm -rf lake demo-data mlruns .lakerec; else ls -d lake demo-data .lakerec 2>/dev/null \
	  | sed 's|$$|/ stays: make clean ALL=yes removes it|'; fi
