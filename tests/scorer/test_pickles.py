"""A model's files are data: what would run code when it is read is refused, and has not run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from lakerec.errors import ModelError
from lakerec.scorer.base_model import folder
from lakerec.scorer.bundle import arrays
from lakerec.scorer.language_model import load_encoder


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled model's folder without its weights."""
    place = tmp_path / "model"
    shutil.copytree(folder("minilm-l6"), place, ignore=shutil.ignore_patterns("*.safetensors", "onnx", "openvino"))
    return place


def test_the_trap_works(tmp_path: Path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_whose_weights_are_a_pickle_is_refused_unread(model: Path, tmp_path: Path, name: str):
    (model / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ModelError, match=rf"{name} is a pickle, which may run code .* save it as safetensors"):
        load_encoder(model)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_has_not_run(model: Path, tmp_path: Path):
    told = json.loads((model / "config.json").read_text())
    told |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (model / "config.json").write_text(json.dumps(told))
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="not an encoder that can be loaded"):
        load_encoder(model)
    assert not (tmp_path / "ran").exists()


def test_arrays_that_are_pickled_objects_are_refused_unread(tmp_path: Path):
    np.savez(tmp_path / "ease.npz", weights=np.array([Trap(tmp_path / "ran")], dtype=object))
    with pytest.raises(ModelError, match=r"ease.npz: no arrays that may be read"):
        arrays(tmp_path / "ease.npz")
    assert not (tmp_path / "ran").exists()
    np.savez(tmp_path / "good.npz", weights=np.ones(3))
    assert arrays(tmp_path / "good.npz")["weights"].sum() == 3
    with pytest.raises(ModelError, match=r"missing\.npz"):
        arrays(tmp_path / "missing.npz")
