"""The pandas-UDF side on plain pandas, texts as vectors, and MLflow."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from nights import PEOPLE, make_events, make_world, readings_of, shelf_of

from conftest import DECODERS, make_slates
from lakerec import scoring
from lakerec.config import Scorer, Training
from lakerec.errors import ModelError
from lakerec.scorer import registry
from lakerec.scorer.artefact import load_manifest
from lakerec.scorer.base_model import model_id
from lakerec.scorer.language_model import TextEncoder
from lakerec.scorer.prediction import Predictor
from lakerec.scorer.serving_day import ScoringDay
from lakerec.scorer.training import train
from lakerec.scoring import bucket_file, bucket_scorer, buckets_in, list_scorer, text_embedder


@pytest.fixture(scope="module")
def artefact(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "v1"
    scorer = Scorer(model=str(tiny), training=Training(freeze="full", epochs=1))
    return train(make_slates(20, 1), make_slates(10, 2), scorer, ["score"], out, lambda _: None), out


def test_importing_the_udf_side_imports_no_torch():
    code = "import lakerec.scoring, sys; assert not {'torch', 'transformers', 'lightgbm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("together", [128, 3])
def test_a_bucket_is_a_file_of_the_days_lists_however_the_frames_are_cut(night, tmp_path, monkeypatch, together):
    monkeypatch.setattr(scoring, "TOGETHER", together)
    file, frame = tmp_path / "day.npz", readings_of(make_events())
    shelf_of(make_world()).save(file)
    day, predictor = ScoringDay.load(night[0], file), Predictor.load(night[0], 1)
    told = frame.assign(bucket=[3] * 7 + [5] * (len(frame) - 7))
    score = bucket_scorer(list_scorer(str(night[0]), str(file), 1, 4), str(tmp_path))
    found = pd.concat(score(iter([told[:4], told[4:9], told[:0], told[9:]])))
    assert found["bucket"].tolist() == [3, 5] and found["users"].tolist() == [7, len(frame) - 7]
    assert found["failed"].tolist() == [0, 0]
    kept = pd.concat([pd.read_parquet(bucket_file(tmp_path, n, k)) for n, k in buckets_in(tmp_path).items()])
    whole, key = day.lists(frame, predictor, 4), ["user_id", "item_id"]
    kept, whole = (rows.sort_values(key, ignore_index=True) for rows in (kept, whole))
    assert kept["score"].dtype == np.float32 and kept[[*key, "source"]].equals(whole[[*key, "source"]])
    assert np.allclose(kept["score"], whole["score"], atol=1e-6)


def test_a_worker_opens_model_and_day_once(night, tmp_path, monkeypatch):
    file, opened = tmp_path / "day.npz", []
    shelf_of(make_world()).save(file)
    load = ScoringDay.load
    monkeypatch.setattr(ScoringDay, "load", lambda *given: opened.append(given) or load(*given))
    frame = readings_of(make_events(), people=PEOPLE[:3])
    for _ in range(2):
        list_scorer(str(night[0]), str(file), 1, 4)(frame)
    assert len(opened) == 1


def test_the_embedder_and_the_encoder_agree(tiny):
    frame = pd.DataFrame({"text_hash": ["a", "b", "c"], "text": ["red train", None, "blue kettle " * 400]})
    found = pd.concat(text_embedder(str(tiny), 1)(iter([frame, frame[:0]])))
    assert found["text_hash"].tolist() == ["a", "b", "c"]
    expected = TextEncoder(str(tiny)).encode(["red train", "", "blue kettle " * 400], batch=2)
    np.testing.assert_allclose(np.stack(found["vector"]), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_makes_vectors_that_do_not_depend_on_the_company(models, kind):
    told = ["red train", "", "blue kettle " * 400, "blue kettle"]
    encoder = TextEncoder(str(models[kind]))
    together, alone = encoder.encode(told), encoder.encode(told, batch=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.shape == (4, 32) and together[0] @ together[3] < 0.999


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
