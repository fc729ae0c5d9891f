"""The pandas-UDF side on plain pandas, texts as vectors, and MLflow."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import make_slates
from lakerec.config import Scorer, Training
from lakerec.errors import ModelError
from lakerec.scorer import registry
from lakerec.scorer.artefact import load_manifest
from lakerec.scorer.base_model import model_id
from lakerec.scorer.language_model import TextEncoder
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.training import train
from lakerec.scoring import slate_scorer, slates_from_frame, text_embedder


@pytest.fixture(scope="module")
def artefact(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "v1"
    scorer = Scorer(model=str(tiny), training=Training(freeze="full", epochs=1))
    return train(make_slates(20, 1), make_slates(10, 2), scorer, ["score"], out, lambda _: None), out


def as_rows(slate):
    parts = zip(slate.texts, slate.features, slate.labels, strict=True)
    names = (f"i{n}" for n in range(len(slate.texts)))
    return [
        {"item_id": i, "text": t, "source": "popular", "features": f, "label": y}
        for i, (t, f, y) in zip(names, parts, strict=True)
    ]


def test_importing_the_udf_side_imports_no_torch():
    code = "import lakerec.scoring, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_are_scored_as_slates_are(artefact):
    slates = make_slates(12, 5)
    frame = pd.DataFrame(
        {
            "user_id": [s.slate_id for s in slates] + ["nobody", "null"],
            "history": [s.history for s in slates] + ["", None],
            "candidates": [as_rows(s) for s in slates] + [np.array([], dtype=object), None],
        }
    )
    score = slate_scorer(str(artefact[1]), 1)
    whole = pd.concat(score(iter([frame])))
    assert list(whole.columns) == ["user_id", "item_id", "score", "source"] and whole["score"].dtype == np.float32
    assert whole["user_id"].tolist() == [s.slate_id for s in slates for _ in s.texts]
    assert whole["item_id"].tolist() == [f"i{n}" for s in slates for n in range(len(s.texts))]
    expected = np.concatenate(Predictor.load(artefact[1], 1).score(slates))
    np.testing.assert_array_equal(whole["score"], expected)
    pieces = pd.concat(score(iter([frame[:5], frame[5:9], frame[9:9], frame[9:]])))
    np.testing.assert_array_equal(pieces["score"], whole["score"])


def test_a_training_frame_gives_slates():
    slates = make_slates(6, 4)
    frame = pd.DataFrame(
        {
            "example_id": [s.slate_id for s in slates],
            "history": [s.history for s in slates],
            "candidates": [as_rows(s) for s in slates],
            "targets": [["a"] * s.targets for s in slates],
        }
    )
    for made, slate in zip(slates_from_frame(frame), slates, strict=True):
        assert (made.slate_id, made.history, made.texts) == (slate.slate_id, slate.history, slate.texts)
        assert made.targets == slate.targets
        np.testing.assert_array_equal(made.features, slate.features)
        np.testing.assert_array_equal(made.labels, slate.labels)


def test_the_embedder_and_the_encoder_agree(tiny):
    frame = pd.DataFrame({"text_hash": ["a", "b", "c"], "text": ["red train", None, "blue kettle " * 400]})
    found = pd.concat(text_embedder(str(tiny), 1)(iter([frame, frame[:0]])))
    assert found["text_hash"].tolist() == ["a", "b", "c"]
    expected = TextEncoder(str(tiny)).encode(["red train", "", "blue kettle " * 400], batch=2)
    np.testing.assert_allclose(np.stack(found["vector"]), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_the_bundled_model_knows_what_texts_mean():
    train_, railway, soup = TextEncoder("minilm-l6").encode(
        ["wooden toy train", "a model railway for kids", "tomato soup"]
    )
    assert train_ @ railway > 0.4 > 0.25 > train_ @ soup


def test_a_model_id_follows_the_weights(tiny, tmp_path):
    copy = tmp_path / tiny.name
    subprocess.run(["cp", "-r", tiny, copy], check=True)
    assert model_id(str(copy)) == model_id(str(tiny))
    with (copy / "model.safetensors").open("rb+") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert model_id(str(copy)) != model_id(str(tiny))


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"config.json": '{"model_type": "bert"}'}])
def test_a_folder_that_is_no_model_is_refused(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match="not an encoder"):
        TextEncoder(str(tmp_path))


def test_runs_versions_and_the_champion_in_mlflow(artefact, tmp_path):
    from mlflow import MlflowClient

    report, out = artefact
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = registry.log_training(uri, "shop", report, load_manifest(out))
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["history_tokens"] == "160"
    history = MlflowClient(uri).get_metric_history(run_id, "valid_loss")
    assert [m.value for m in history] == report.valid_loss
    first = registry.register(uri, "v1", out, {"ndcg@10": 0.25})
    assert registry.register(uri, "v1", out, {"ndcg@10": 0.5}) == first
    assert registry.register(uri, "v2", out, {}) != first
    registry.set_champion(uri, "v2")
    client = MlflowClient(uri, registry_uri=uri)
    assert client.get_model_version_by_alias(registry.MODEL, "champion").tags["version"] == "v2"
    assert client.get_model_version(registry.MODEL, first).tags["ndcg_at_10"] == "0.5"
    registry.set_champion(uri, "v1")
    assert client.get_model_version_by_alias(registry.MODEL, "champion").tags["version"] == "v1"
    with pytest.raises(ModelError, match="no version v9"):
        registry.set_champion(uri, "v9")
