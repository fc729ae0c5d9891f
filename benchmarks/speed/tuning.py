"""Fine-tuning beside transformers.Trainer: the same encoder in full, the same labelled candidates, one pass over them.

Ours reads a slate once; Trainer reads a pair of history and candidate for each label. Its texts are tokenised ahead,
batches are of similar length, and dropout is off as in ours: that lets it use the fast attention kernel.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed import made
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from lakerec.scorer.base_model import folder
from lakerec.scorer.language_model import device, precision
from lakerec.scorer.slates import Slate
from lakerec.scorer.training import train

RATES = {"ours": 3e-4, "peer": 1e-4}  # the better of 1e-4 and 3e-4 for each, by validation loss
BATCH = 32  # pairs of a step of Trainer's


@dataclass(frozen=True)
class Tuned:
    """Seconds of training, the validation log-loss (nats per candidate) before and after."""

    seconds: float
    before: float
    after: float


def ours(training: list[Slate], valid: list[Slate], history_tokens: int, model: str, epochs: int) -> Tuned:
    """lakerec.scorer.training.train; its seconds contain the validation after each epoch."""
    told: dict[str, Any] = {"freeze": "full", "epochs": epochs, "patience": epochs, "learning_rate": RATES["ours"]}
    with tempfile.TemporaryDirectory() as place:
        wanted = made.settings(history_tokens, model, **told)
        report = train(training, valid, wanted, made.FEATURES, Path(place) / "v1", lambda _: None)
    return Tuned(report.seconds, report.prior_loss, report.valid_loss[-1])


def peer(training: list[Slate], valid: list[Slate], history_tokens: int, model: str, epochs: int) -> Tuned:
    """transformers.Trainer on pairs; validation is not in its seconds."""
    torch.manual_seed(17)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder(model),
        num_labels=1,
        problem_type="multi_label_classification",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_safetensors=True,
    )
    examples, held_out = (pairs(found, history_tokens) for found in (training, valid))
    with tempfile.TemporaryDirectory() as place:
        collator = DataCollatorWithPadding(made.tokenizer())
        trainer = Trainer(classifier, arguments(place, epochs), collator, examples)  # type: ignore[arg-type]
        before = log_loss(trainer, held_out)
        began = time.monotonic()
        trainer.train()
        return Tuned(time.monotonic() - began, before, log_loss(trainer, held_out))


def arguments(place: str, epochs: int) -> TrainingArguments:
    """The precision of ours; nothing is logged or saved."""
    kind = device().type
    return TrainingArguments(
        output_dir=place,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=epochs,
        learning_rate=RATES["peer"],
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=precision(kind) == torch.bfloat16,
        use_cpu=kind == "cpu",
        train_sampling_strategy="group_by_length",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=17,
    )


def pairs(slates: Sequence[Slate], history_tokens: int) -> list[dict[str, Any]]:
    """Every labelled candidate behind its history, as many tokens of both as ours reads."""
    tokenizer, found = made.tokenizer(), []
    for slate in slates:
        assert slate.labels is not None
        begin = [tokenizer.cls_token_id, *_ids(slate.history)[-history_tokens:], tokenizer.sep_token_id]
        for text, label in zip(slate.texts, slate.labels, strict=True):
            end = [*_ids(text)[: made.CANDIDATE_TOKENS], tokenizer.sep_token_id]
            types = [0] * len(begin) + [1] * len(end)
            found.append({"input_ids": begin + end, "token_type_ids": types, "labels": [float(label)]})
    return found


def _ids(text: str) -> list[int]:
    found: list[int] = made.tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids
    return found


def log_loss(trainer: Trainer, examples: list[dict[str, Any]]) -> float:
    """Mean nats of a pair."""
    told = trainer.predict(examples).predictions  # type: ignore[arg-type]
    logits: NDArray[np.float64] = np.asarray(told, dtype=np.float64)[:, 0]
    labels = np.array([example["labels"][0] for example in examples])
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))
