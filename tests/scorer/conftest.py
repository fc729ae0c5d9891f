"""A random encoder of 2 layers, d = 32, with MiniLM's tokenizer, and slates whose answer is in their text."""

import os

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two threads of OpenMP on shared cores wait for one another: a training of a second takes twenty.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lakerec.scorer.slates import Slate

COLOURS = ["red", "blue", "green", "yellow"]
THINGS = ["train", "kettle", "book", "lamp"]


def make_slates(count, seed, noise=1.0, colours=COLOURS):
    """Slates of 2 to 6 candidates: the history's colour is positive; the feature tells it with noise."""
    rng = np.random.default_rng(seed)
    slates = []
    for number in range(count):
        liked = rng.choice(colours)
        shown = rng.choice(COLOURS, size=rng.integers(2, 7))
        shown[0] = liked
        labels = (shown == liked).astype(np.float32)
        features = (labels + noise * rng.normal(size=len(labels))).astype(np.float32)[:, None]
        texts = [f"{colour} {rng.choice(THINGS)}" for colour in shown]
        history = ", ".join(f"bought {liked} {rng.choice(THINGS)}" for _ in range(rng.integers(1, 8)))
        slates.append(Slate(f"s{number}", history, texts, features, labels, int(labels.sum())))
    return slates


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the tiny encoder."""
    import torch
    from transformers import BertConfig, BertModel

    from lakerec.scorer.base_model import folder
    from lakerec.scorer.language_model import load_encoder

    place = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = BertModel(BertConfig(vocab_size=30522, initializer_range=0.3, **sizes), add_pooling_layer=False)
    encoder.save_pretrained(place)
    load_encoder(folder("minilm-l6"))[1].save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def night(tiny, tmp_path_factory):
    """The artefact of a small shop's night, and the lines it told."""
    import nights

    out, lines = tmp_path_factory.mktemp("nights") / "v1", []
    nights.run(out, nights.make_config(tiny), lines=lines)
    return out, lines
