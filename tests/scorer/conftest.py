"""Random models of 2 layers, d = 32: an encoder, a decoder of each family; slates whose answer is in their text."""

import os

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two threads of OpenMP on shared cores wait for one another: a training of a second takes twenty.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lakerec.scorer.slates import Slate

COLOURS = ["red", "blue", "green", "yellow"]
THINGS = ["train", "kettle", "book", "lamp"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
END = "<|endoftext|>"
BEGINS = {"llama": "<s>", "qwen2": None, "qwen3": None, "gpt2": END, "gpt_neox": END}
DECODERS = list(BEGINS)


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


def logits(model, packs):
    """What a model gives each candidate of some packs, its features zero."""
    import torch

    with torch.inference_mode():
        batch = model.collate(packs)
        found = torch.zeros(len(batch.rows))
        found[batch.rows] = model(batch, torch.zeros(len(batch.rows), 1))
    return found.numpy()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the tiny encoder."""
    import torch
    from transformers import BertConfig, BertModel

    from lakerec.scorer.base_model import folder
    from lakerec.scorer.language_model import load_encoder

    place = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=30522, initializer_range=0.3, **SIZES), add_pooling_layer=False)
    encoder.save_pretrained(place)
    load_encoder(folder("minilm-l6"))[1].save_pretrained(place)
    return place


def make_tokenizer(begin, end):
    """Bytes, and the merges that the slates' words teach; no padding token, as most decoders have none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[token for token in dict.fromkeys((begin, end)) if token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokens.train_from_iterator([f"{word} bought {word}" for word in COLOURS + THINGS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token=begin, eos_token=end)


def make_decoder(place, kind, end=END):
    """A random decoder of an architecture, saved in a folder."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = make_tokenizer(BEGINS[kind], end)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {
        **SIZES,
        **ends,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer) + 1,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, initializer_range=0.3, **sizes)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory):
    """The folders of the tiny models by architecture: `bert` and the decoders."""
    return {"bert": tiny, **{kind: make_decoder(tmp_path_factory.mktemp(kind), kind) for kind in DECODERS}}


@pytest.fixture(scope="session")
def night(tiny, tmp_path_factory):
    """The artefact of a small shop's night, and the lines it told."""
    import nights

    out, lines = tmp_path_factory.mktemp("nights") / "v1", []
    nights.run(out, nights.make_config(tiny), lines=lines)
    return out, lines
