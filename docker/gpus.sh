#!/bin/sh
# A discovery script of Spark's: the GPUs of this machine by nvidia-smi's numbers, as the JSON that Spark expects.
set -eu
nvidia-smi --query-gpu=index --format=csv,noheader |
    awk '{ list = list (NR > 1 ? ", " : "") "\"" $1 "\"" } END { printf "{\"name\": \"gpu\", \"addresses\": [%s]}\n", list }'
