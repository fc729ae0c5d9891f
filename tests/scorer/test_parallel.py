"""Two processes train what one trains: the same curves, the same weights, one artefact."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from torch.multiprocessing import ProcessRaisedException

from lakerec.errors import ProcessLostError
from lakerec.scorer import parallel

CASES = {
    "bce": {},
    "softmax": {"loss": "softmax", "accumulate": 2},
    "head": {"freeze": "head", "loss": "distill"},
    "lora": {"freeze": "lora"},
    "stages": {"freeze": "head+lora", "learning_rate": 4e-4},
    "budget": {"max_minutes": 1e-9},  # ends behind the first update
}
LOSSES = {"budget": 2, "stages": 5}  # on the validation slates: of the start, and behind each epoch
SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import time, types
from pathlib import Path
import torch
from lakerec.scorer import artefact, fitting, parallel, training
if parallel.rank():  # its clock decides nothing
    fitting.time = types.SimpleNamespace(perf_counter=lambda: time.perf_counter() * 1e-15)
artefact.precision = lambda _: torch.float32  # a batch's shape rounds nothing that counts
import conftest, test_parallel as t, test_training
tiny, place = Path(sys.argv[2]), Path(sys.argv[3])

def train(name, changes):
    data = (conftest.make_slates(count, seed, 10.0, ["red"]) for count, seed in ((40, 1), (20, 2)))
    lines, asked = [], []
    scorer = test_training.settings_of(tiny, token_budget=192, epochs=2, patience=2, **changes)
    pays = lambda told: asked.append(1) or True
    report = training.train(*data, scorer, ["noise"], place / name, lines.append, None, pays)
    return {"train": report.train_loss, "valid": report.valid_loss, "ndcg": report.valid_ndcg,
            "best": report.best_epoch, "kept": report.language_model, "lines": len(lines), "asked": len(asked)}

with parallel.group():
    found = {name: train(name, changes) for name, changes in t.CASES.items()}
(place / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
"""


TOGETHER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from lakerec.scorer import artefact, training
artefact.precision = lambda _: torch.float32  # the processes read this file, too
import conftest, test_training

def train(name, seed=1, **changes):
    data = (conftest.make_slates(count, seed, 10.0, ["red"]) for count, seed in ((40, seed), (20, 2)))
    scorer = test_training.settings_of(tiny, token_budget=192, patience=2, **changes)
    report = training.train(*data, scorer, ["noise"], place / name, lambda line: print(name, line))
    return {"train": report.train_loss, "valid": report.valid_loss, "ndcg": report.valid_ndcg}

if __name__ == "__main__":
    tiny, place = Path(sys.argv[2]), Path(sys.argv[3])
    train("teacher", seed=3, epochs=1)
    learns = {"loss": "distill", "teacher": "teacher", "epochs": 2}
    train("short", processes=2, epochs=2, max_minutes=1e-9)
    train("shorter", processes=2, epochs=2, max_minutes=1e-9, freeze="head+lora")  # the head uses it up
    print(json.dumps([train("one", **learns), train("two", processes=2, **learns)]))
"""


def start(tiny, place, **rank):
    told = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **{name: str(value) for name, value in rank.items()}}
    given = [str(Path(__file__).parent), str(tiny), str(place)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *given], env=os.environ | told)


def run(tiny, place, size):
    """Train every case with so many processes; what each of them reports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **where} for rank in range(size)]
    children = [start(tiny, place, **rank) for rank in ranks]
    try:
        assert [child.wait(timeout=400) for child in children] == [0] * size
    finally:
        for child in children:
            child.kill()
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folders and reports of one process and of two."""
    places = [tmp_path_factory.mktemp(name) for name in ("alone", "both")]
    return [(place, run(tiny, place, size)) for size, place in enumerate(places, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(trained, case):
    (alone, (expected,)), (both, found) = ((place, [each[case] for each in told]) for place, told in trained)
    for report in found:
        assert len(report["valid"]) == LOSSES.get(case, 3)
        for curve in ("train", "valid", "ndcg"):
            np.testing.assert_allclose(report[curve], expected[curve], atol=1e-5, err_msg=curve)
        assert (report["best"], report["kept"]) == (expected["best"], expected["kept"])
    assert found[0]["lines"] == expected["lines"] and found[1]["lines"] == 0
    assert found[0]["asked"] == expected["asked"] and found[1]["asked"] == 0
    for file in ("model.safetensors", "head.safetensors"):
        one, two = (load_file(place / case / file) for place in (alone, both))
        # Attention does not see its keys' bias: the gradient is rounding, and AdamW makes steps of it.
        for name in (name for name in one if not name.endswith("key.bias")):
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)
    assert not list(both.glob(".*"))


def test_a_training_starts_its_processes_itself(tiny, tmp_path):
    script = tmp_path / "night.py"
    script.write_text(TOGETHER)
    given = [str(Path(__file__).parent), str(tiny), str(tmp_path)]
    told = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script, *given], env=told, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    *lines, reports = done.stdout.splitlines()
    one, two = json.loads(reports)
    for curve, values in two.items():
        np.testing.assert_allclose(values, one[curve], atol=1e-5, err_msg=curve)
    assert len([line for line in lines if line.startswith("epoch 2: ")]) == 1  # the first of the processes tells
    assert len([line for line in lines if "max_minutes are used up" in line]) == 2
    own = [line for line in lines if line.startswith("two ")]
    assert any("resumed after epoch 2" in line for line in own) and not any("epoch 2: " in line for line in own)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name in (name for name in weights[0] if not name.endswith("key.bias")):
        np.testing.assert_allclose(weights[1][name], weights[0][name], atol=1e-4, err_msg=name)
    assert not list(tmp_path.glob(".*"))


def fails():
    """What a process does whose code is wrong."""
    raise ZeroDivisionError


def test_a_fault_in_a_process_is_no_lost_process():
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError"):
        parallel.together(2, fails)


def dies():
    """What a process does that the kernel ends."""
    if parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_process_that_is_killed_ends_the_training_with_its_cause():
    began = time.monotonic()
    with pytest.raises(ProcessLostError, match=r"SIGKILL.*checkpoint"):
        parallel.together(2, dies)
    assert time.monotonic() - began < 120


SLEEPING = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
from lakerec.scorer import parallel

def sleeps(place):
    (Path(place) / f"joined{parallel.rank()}").touch()
    time.sleep(600)

if __name__ == "__main__":
    parallel.together(2, sleeps, sys.argv[1])
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = tmp_path / "night.py"
    script.write_text(SLEEPING)
    parent = psutil.Popen([sys.executable, script, tmp_path])
    try:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("joined*"))) < 2:
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.2)
        children = parent.children()
        parent.kill()
        assert len(children) >= 2 and not psutil.wait_procs(children, timeout=30)[1]
    finally:
        if parent.is_running():
            parent.kill()


def test_a_share_of_every_process_is_the_whole_step(monkeypatch):
    step = np.array([5, 3, 9])
    monkeypatch.setenv("WORLD_SIZE", "4")
    shares = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(parallel.share(step).tolist())
    assert shares == [[5], [3], [9], []]
