"""Fine-tuning on slates: from the prior alone to the weights that validate best.

A slate's negatives are the ranker's best that the user did not choose; the least of them may have given way to what the
user was shown and passed over further down. None is drawn: no loss needs a correction for sampled negatives. But
probabilities are of slates as they are served: the features' own are fitted on those, and what has learned from others,
or by a loss over slates, is brought to log odds on the validation slates, which are all as served.

Several processes may train one model, started by torchrun, or here where the configuration wants so many
(`scorer.training.processes`); one judges and writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lakerec.config import Scorer, Training
from lakerec.errors import ContractError
from lakerec.scorer import arithmetic, parallel
from lakerec.scorer.artefact import Manifest, build, save
from lakerec.scorer.base_model import folder, model_id
from lakerec.scorer.checkpoints import is_of
from lakerec.scorer.fitting import Run, TrainingReport
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.losses import teacher_logits
from lakerec.scorer.model import FLOAT32, SlateScorer, check_blocks, check_length
from lakerec.scorer.prediction import Predictor, corrections, stack_features
from lakerec.scorer.prior import fit_prior, moments, prior_weights, rescale
from lakerec.scorer.reading import Examples, lacking
from lakerec.scorer.slates import Form, Packer, Slate

Beside = Callable[[Path, bool], None]
Pays = Callable[[list[NDArray[np.float32]]], bool]
Served = Callable[[list[NDArray[np.float32]]], list[NDArray[np.floating]] | None]
Taught = tuple[Tensor, Tensor]  # a teacher's logits of the training's and the validation's candidates


def train(
    train: list[Slate],
    valid: list[Slate],
    scorer: Scorer,
    feature_names: list[str],
    out: Path,
    progress: Callable[[str], None],
    beside: Beside | None = None,
    pays: Pays | None = None,
    served: Served | None = None,
) -> TrainingReport:
    """Fine-tune and write the artefact to `out`, whose name is its version; a run that was killed goes on.

    `beside` writes what else belongs to the artefact into its folder, told whether the language model does. One that
    does not validate better than the features, or by what it adds to the validation slates' logits does not pay, is
    left out, unless the configuration wants it always: lists are then the features' alone. So they are in any case
    where either slates have not both positives and negatives. `served` has the scores that order the first of these
    slates in a list, by what is added; without it, or where it has none, the logits do.
    """
    first = parallel.rank() == 0
    with parallel.group():
        training = _Trained(train, valid, scorer, feature_names, out, progress if first else lambda _: None)
        if first:
            training.finish(beside, pays, served)
        training.report.language_model = parallel.from_first(training.report.language_model)
    return training.report


def _fitted(
    train: list[Slate], valid: list[Slate], scorer: Scorer, feature_names: list[str], out: Path, taught: Taught | None
) -> None:
    """Leave a checkpoint of the whole training: what a process of several does."""
    say = partial(print, flush=True) if parallel.rank() == 0 else lambda _: None
    _Trained(train, valid, scorer, feature_names, out, say, taught)


class _Trained:
    """A model fitted in every process, and what rank 0 makes of it."""

    def __init__(
        self,
        train: list[Slate],
        valid: list[Slate],
        scorer: Scorer,
        feature_names: list[str],
        out: Path,
        progress: Callable[[str], None],
        taught: Taught | None = None,
    ) -> None:
        self.valid, self.scorer, self.names, self.out, self.progress = valid, scorer, feature_names, out, progress
        self.lacking = lacking(train, valid)
        silent = scorer.language_model == "never" or bool(self.lacking)
        # Where nothing is trained nothing is read either: `head` would read every slate ahead.
        self.settings = scorer.training.model_copy(update={"loss": "bce", "freeze": "full"} if silent else {})
        torch.manual_seed(self.settings.seed)
        encoder, self.tokenizer = load_encoder(folder(scorer.model))
        check_length(encoder, scorer.history_tokens + scorer.candidate_tokens + 3, scorer.model)
        self.packer = Packer.of(self.tokenizer, Form.of(scorer.model_dump()))
        examples = Examples.of(train, self.packer, len(feature_names))
        held_out = Examples.of(valid, self.packer, len(feature_names))
        as_served = [replace(slate, features=slate.served) for slate in train]
        served = replace(examples, features=stack_features(as_served, len(feature_names)))
        self.moments = moments(served.features)
        self.item_width = _item_width(self.packer, [*train, *valid])
        self.model = build(encoder, *self.moments, self.item_width)
        check_blocks(self.model, self.packer, scorer.model)
        fit_prior(self.model, served)
        self.alone = prior_weights(self.model)
        self.report = TrainingReport(model_id(scorer.model), len(train), len(examples.labels))
        self.report.passed_over = sum(slate.put_in for slate in train)
        self.odds = self.settings.loss == "bce" and not self.report.passed_over  # what is learned is log odds
        if self.settings.loss == "distill":
            taught = taught or (self._taught(examples, train), self._taught(held_out, valid))
            examples, held_out = replace(examples, teacher=taught[0]), replace(held_out, teacher=taught[1])
        self.checkpoint, self.head = (out.with_name(f".{out.name}.{name}") for name in ("checkpoint", "head"))
        self.arithmetic, self.agreement = FLOAT32, dict[str, Any]()
        several = self.settings.processes > 1 and parallel.size() == 1 and not silent and self.settings.freeze != "head"
        if several:
            parallel.together(self.settings.processes, _fitted, train, valid, scorer, feature_names, out, taught)
        mark = fingerprint([*train, *valid], scorer, self.report.base_model, taught or ())
        head, _, rest = self.settings.freeze.partition("+")
        if rest and not several and not parallel.from_first(is_of(self.checkpoint, mark)):
            self._run(examples, held_out, head, lambda line: progress(f"head first: {line}")).fit(self.head, mark)
            self.report.ahead = len(self.report.train_loss)
        self._fit(self._run(examples, held_out, rest or head, progress), mark, several)

    def _run(self, examples: Examples, held_out: Examples, freeze: str, progress: Callable[[str], None]) -> Run:
        """A stage of the training, by its freeze policy."""
        settings = self.settings.model_copy(update={"freeze": freeze})
        apply_freeze(self.model, settings)
        return Run(self.model, examples, held_out, settings, self.report, progress)

    def _taught(self, examples: Examples, slates: list[Slate]) -> Tensor:
        """The teacher's logits."""
        return teacher_logits(self.settings.teacher, self.out.parent, self.model, slates, examples.features)

    def _fit(self, run: Run, mark: str, fitted: bool) -> None:
        """Leave the weights that validate best, as logits that are log odds, with adapters merged.

        fitted: several processes have left the checkpoint of the whole training, and nothing is left to be done.
        """
        report = self.report
        if self.lacking:
            run.validate_start()
        elif self.scorer.language_model == "never":
            run.begin()
        else:
            run.fit(self.checkpoint, mark, fitted)
        if report.best_epoch > 0 and not self.odds:
            report.scale, report.shift = rescale(self.model, run.read_held_out(), run.held_out.examples.labels)
            self.progress(f"log odds: {report.scale:.3f} logits {report.shift:+.3f}, fitted on the validation slates")
        if isinstance(self.model.encoder, PeftModel):
            self.model.encoder = self.model.encoder.merge_and_unload()

    def finish(self, beside: Beside | None, pays: Pays | None, served: Served | None) -> None:
        """Judge the language model and write the artefact."""
        report, scorer, out = self.report, self.scorer, self.out
        report.language_model = kept = self._kept(pays, served)
        if not kept:
            why = "by scorer.language_model" if scorer.language_model == "never" else "for it does not pay"
            why = f"with nothing to teach or to judge it by ({self.lacking})" if self.lacking else why
            self.progress(f"the language model is left out, {why}; it costs nothing")
        settings = scorer.model_dump(mode="json", exclude={"model"})
        settings |= {"language_model": kept, "arithmetic": self.arithmetic, "agreement": self.agreement}
        settings["item_width"] = self.item_width
        mean, std = (values.tolist() for values in self.moments)
        prior = prior_weights(self.model) if kept else self.alone
        alone = self.alone if kept and not self.odds else []
        made = Manifest(out.name, report.base_model, self.names, mean, std, prior, settings, alone)
        save(out, self.model, self.tokenizer, made, None if beside is None else lambda folder: beside(folder, kept))
        self.checkpoint.unlink(missing_ok=True)
        self.head.unlink(missing_ok=True)

    def _kept(self, pays: Pays | None, served: Served | None) -> bool:
        """Whether the language model becomes part of the artefact."""
        wish = self.scorer.language_model
        if self.lacking or (wish != "always" and not self.report.best_epoch):
            return False
        exact = self.model.computing(FLOAT32)
        if pays is not None and not pays(corrections(exact, self.packer, self.valid)):
            if wish != "always":
                return False
            self.progress("the language model stays all the same, by scorer.language_model: always")

        def scored(predictor: Predictor, slates: Sequence[Slate]) -> Sequence[NDArray[np.floating]]:
            found = None if served is None else served(predictor.corrections(slates))
            return predictor.logits(slates) if found is None else found

        self.arithmetic, self.agreement = arithmetic.chosen(
            self._predictor, self.model, self.valid, self.scorer.arithmetic, self.progress, scored
        )
        return True

    def _predictor(self, model: SlateScorer) -> Predictor:
        """The fitted weights in some arithmetic."""
        mean, std = (values.tolist() for values in self.moments)
        told = Manifest(self.out.name, self.report.base_model, self.names, mean, std, prior_weights(self.model), {})
        return Predictor(told, model, self.packer)


def _item_width(packer: Packer, slates: Sequence[Slate]) -> int:
    """Of the item vectors that are read, 0 without; ContractError where slates lack them."""
    if not packer.form.reads_vectors:
        return 0
    found = {
        *(slate.past.vectors.table.shape[1] for slate in slates if slate.past is not None),
        *(slate.vectors.table.shape[1] for slate in slates if slate.vectors is not None),
    }
    if len(found) != 1:
        raise ContractError(f"slates bring item vectors of the widths {sorted(found)}; one width is needed")
    return found.pop()


def apply_freeze(model: SlateScorer, settings: Training) -> None:
    """`head`: the encoder stays; `lora`: adapters of low rank (Hu et al. 2021); `full`: all is trained.

    What moves a whole slate has no gradient but rounding in a loss over slates: the biases then stay.
    """
    model.encoder.requires_grad_(settings.freeze == "full")
    for bias in (model.prior.bias, model.head[-1].bias):
        bias.requires_grad_(settings.loss == "bce")
    if settings.freeze == "lora":
        rank = settings.lora_rank
        transposed = any(isinstance(module, Conv1D) for module in model.encoder.modules())  # GPT-2 and its kin
        adapters = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=transposed
        )
        model.encoder = get_peft_model(model.encoder, adapters)
    model.eval()  # no dropout: it costs the fast attention kernel; early stopping guards


def fingerprint(slates: Sequence[Slate], scorer: Scorer, base_model: str, teacher: Sequence[Tensor | None] = ()) -> str:
    """A hash of everything that decides a training: a checkpoint of another one is not resumed."""
    digest = hashlib.sha256(f"{scorer.decisive()} {base_model}".encode())
    for slate in slates:
        digest.update(repr((slate.slate_id, slate.history, slate.texts)).encode("utf-8", "replace"))
        digest.update(slate.features.tobytes())
        digest.update(b"" if slate.labels is None else slate.labels.tobytes())
        if slate.past is not None:
            digest.update(slate.past.vectors.rows.tobytes() + slate.past.kinds.tobytes() + slate.past.ages.tobytes())
        if slate.vectors is not None:
            digest.update(slate.vectors.rows.tobytes())
        if slate.instead is not None:
            digest.update(slate.instead.tobytes())
    for logits in teacher:
        digest.update(b"" if logits is None else logits.numpy().tobytes())
    return digest.hexdigest()
