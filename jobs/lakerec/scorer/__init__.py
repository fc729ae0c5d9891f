"""The room of the language model: everything that imports torch lives here.

The environment is set before any of the libraries is imported: no telemetry, and no look-up on the network
at run time unless HF_HUB_OFFLINE=0 is given.
"""

import os

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # Spark forks its workers: a thread pool would not survive
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another process made a LightGBM fit 7 times slower
}.items():
    os.environ.setdefault(_name, _value)
