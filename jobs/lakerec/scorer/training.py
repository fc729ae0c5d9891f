"""Fine-tuning with binary cross-entropy: from the prior alone to the weights that validate best."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from transformers.pytorch_utils import Conv1D

from lakerec.config import Scorer, Training
from lakerec.scorer.artefact import Manifest, build, save
from lakerec.scorer.base_model import folder, model_id
from lakerec.scorer.language_model import load_encoder
from lakerec.scorer.model import SlateScorer, check_blocks, check_length
from lakerec.scorer.prediction import corrections
from lakerec.scorer.reading import CachedReading, Examples, Reading
from lakerec.scorer.slates import Packer, Slate

RIDGE = 1e-3  # keeps the prior finite where a feature separates the classes
HEAD_RATE = 5.0  # the head starts from nothing: it learns so many times faster than the encoder
WARM_UP = 0.1  # share of all steps
CLIP = 1.0  # norm of the gradient
REPORTS = 4  # progress lines an epoch
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state


@dataclass
class TrainingReport:
    """How a training went; losses are mean nats per candidate, valid_loss[0] is that of the prior alone."""

    base_model: str
    slates: int
    candidates: int
    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    language_model: bool = True

    @property
    def prior_loss(self) -> float:
        """Validation log-loss of the features alone."""
        return self.valid_loss[0]

    @property
    def best_loss(self) -> float:
        """Validation log-loss of the weights that were kept."""
        return self.valid_loss[self.best_epoch]

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second, validation included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    train: list[Slate],
    valid: list[Slate],
    scorer: Scorer,
    feature_names: list[str],
    out: Path,
    progress: Callable[[str], None],
    beside: Callable[[Path, bool], None] | None = None,
    pays: Callable[[list[NDArray[np.float32]]], bool] | None = None,
) -> TrainingReport:
    """Fine-tune and write the artefact to `out`, whose name is its version; a run that was killed goes on.

    `beside` writes what else belongs to the artefact into its folder, told whether the language model does. One that
    does not lower the validation loss, or by what it adds to the validation slates' logits does not pay, is left out,
    unless the configuration wants it always: lists are then the features' alone.
    """
    torch.manual_seed(scorer.training.seed)
    encoder, tokenizer = load_encoder(folder(scorer.model))
    check_length(encoder, scorer.history_tokens + scorer.candidate_tokens + 3, scorer.model)
    packer = Packer(tokenizer, scorer.history_tokens, scorer.candidate_tokens)
    examples = Examples.of(train, packer, len(feature_names), "training")
    held_out = Examples.of(valid, packer, len(feature_names), "validation")
    mean, std = moments(examples.features)
    model = build(encoder, mean, std)
    check_blocks(model, packer, scorer.model)
    fit_prior(model, examples)
    apply_freeze(model, scorer.training)
    report = TrainingReport(model_id(scorer.model), len(train), len(examples.labels))
    run = Run(model, examples, held_out, scorer.training, report, progress)
    checkpoint = out.with_name(f".{out.name}.checkpoint")
    if scorer.language_model == "never":
        report.valid_loss.append(run.validate())
    else:
        run.fit(checkpoint, fingerprint([*train, *valid], scorer, report.base_model))
    if isinstance(model.encoder, PeftModel):
        model.encoder = model.encoder.merge_and_unload()
    report.language_model = _kept(model, packer, valid, scorer.language_model, report, pays)
    if not report.language_model:
        progress("the language model does not pay: it is left out, and costs nothing")
    settings = scorer.model_dump(mode="json", exclude={"model"}) | {"language_model": report.language_model}
    prior = [*model.prior.weight.detach().flatten().tolist(), float(model.prior.bias.detach())]
    made = Manifest(out.name, report.base_model, feature_names, mean.tolist(), std.tolist(), prior, settings)
    save(out, model, tokenizer, made, None if beside is None else lambda folder: beside(folder, made.language_model))
    checkpoint.unlink(missing_ok=True)
    return report


def _kept(
    model: SlateScorer,
    packer: Packer,
    valid: list[Slate],
    wish: str,
    report: TrainingReport,
    pays: Callable[[list[NDArray[np.float32]]], bool] | None,
) -> bool:
    """Whether the language model becomes part of the artefact."""
    wanted = wish == "always" or report.best_epoch > 0
    if not wanted or pays is None:
        return wanted
    return pays(corrections(model, packer, valid)) or wish == "always"


def moments(features: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (f,) of each feature, what is not finite left out; 1 for a constant."""
    finite = torch.where(torch.isfinite(features), features.double(), torch.nan).numpy()
    known = np.isfinite(finite).any(axis=0)
    mean, std = np.zeros(finite.shape[1]), np.ones(finite.shape[1])
    mean[known], std[known] = np.nanmean(finite[:, known], axis=0), np.nanstd(finite[:, known], axis=0)
    return mean.astype(np.float32), np.where(std < 1e-8, 1.0, std).astype(np.float32)


def fit_prior(model: SlateScorer, examples: Examples) -> None:
    """Ridge logistic regression of the labels on the standardised features, by L-BFGS in float64."""
    x = model.standardise(examples.features.to(model.mean.device)).double().cpu()
    y = examples.labels.double()
    rate = y.mean()
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.log(rate / (1 - rate)).requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = cross_entropy(x @ weight + bias, y) + RIDGE / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        model.prior.weight.copy_(weight.detach()[None])
        model.prior.bias.copy_(bias.detach())


def apply_freeze(model: SlateScorer, settings: Training) -> None:
    """`head`: the encoder stays; `lora`: adapters of low rank (Hu et al. 2021); `full`: all is trained."""
    model.encoder.requires_grad_(settings.freeze == "full")
    if settings.freeze == "lora":
        rank = settings.lora_rank
        transposed = any(isinstance(module, Conv1D) for module in model.encoder.modules())  # GPT-2 and its kin
        adapters = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=transposed
        )
        model.encoder = get_peft_model(model.encoder, adapters)
    model.eval()  # no dropout: it costs the fast attention kernel; early stopping guards


def fingerprint(slates: Sequence[Slate], scorer: Scorer, base_model: str) -> str:
    """A hash of everything that decides a training: a checkpoint of another one is not resumed."""
    digest = hashlib.sha256(f"{scorer.model_dump_json()} {base_model}".encode())
    for slate in slates:
        digest.update(repr((slate.slate_id, slate.history, slate.texts)).encode("utf-8", "replace"))
        digest.update(slate.features.tobytes())
        digest.update(b"" if slate.labels is None else slate.labels.tobytes())
    return digest.hexdigest()


class Run:
    """The epochs of one training and all that they change."""

    def __init__(
        self,
        model: SlateScorer,
        examples: Examples,
        held_out: Examples,
        settings: Training,
        report: TrainingReport,
        progress: Callable[[str], None],
    ) -> None:
        self.model, self.settings, self.report, self.progress = model, settings, report, progress
        began = time.perf_counter()
        kind = CachedReading if settings.freeze == "head" else Reading
        self.reading = kind(model, examples, settings.token_budget)
        self.held_out = kind(model, held_out, settings.token_budget)
        self.weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
        self.optimiser = self._optimiser()
        report.seconds, report.tokens = time.perf_counter() - began, self._tokens_read()

    def _optimiser(self) -> torch.optim.AdamW:
        inside = [w for name, w in self.weights.items() if name.startswith("encoder.")]
        outside = [w for name, w in self.weights.items() if not name.startswith("encoder.")]
        rate = self.settings.learning_rate
        groups = [{"params": inside, "rate": rate}, {"params": outside, "rate": HEAD_RATE * rate}]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)

    def fit(self, checkpoint: Path, fingerprint: str) -> None:
        """Train until the last epoch or until `patience` epochs brought nothing; leaves the best weights."""
        if not self._resume(checkpoint, fingerprint):
            self.report.valid_loss.append(self.validate())
            self.best = self._copy()
        while self._worth_going_on():
            self._epoch()
            self._save(checkpoint, fingerprint)
        self._set(self.best)

    def _worth_going_on(self) -> bool:
        done = len(self.report.train_loss)
        return done < self.settings.epochs and done - self.report.best_epoch < self.settings.patience

    def _epoch(self) -> None:
        report, began = self.report, time.perf_counter()
        tokens = self._tokens_read()
        report.train_loss.append(self._train(len(report.train_loss)))
        report.valid_loss.append(self.validate())
        report.seconds += time.perf_counter() - began
        report.tokens += self._tokens_read() - tokens
        if report.valid_loss[-1] < report.best_loss:
            report.best_epoch = len(report.train_loss)
            self.best = self._copy()
        done, loss = len(report.train_loss), report.valid_loss[-1]
        self.progress(f"epoch {done}: validation loss {loss:.4f}, features alone {report.prior_loss:.4f}")

    def _tokens_read(self) -> int:
        return self.reading.tokens_read + self.held_out.tokens_read

    def _train(self, epoch: int) -> float:
        """One epoch of steps; the mean loss of a candidate."""
        steps = self.reading.shuffled(np.random.default_rng([self.settings.seed, epoch]))
        began, total, count = time.perf_counter(), 0.0, 0
        marks = {round(part * len(steps) / REPORTS) for part in range(1, REPORTS + 1)}
        for number, step in enumerate(steps, 1):
            loss, size = self._step(step, (epoch + number / len(steps)) / self.settings.epochs)
            total, count = total + loss * size, count + size
            if number in marks:
                share = number / len(steps)
                self._tell(epoch, share, total / count, time.perf_counter() - began)
        return total / count

    def _tell(self, epoch: int, share: float, loss: float, seconds: float) -> None:
        left = seconds / share * (self.settings.epochs - epoch - share)
        speed = self.report.slates * share / seconds
        self.progress(
            f"epoch {epoch + 1}/{self.settings.epochs} {share:4.0%}  loss {loss:.4f}  "
            f"{speed:.1f} slates/s  at most {left / 60:.1f} min left"
        )

    def _step(self, step: NDArray[np.int64], share: float) -> tuple[float, int]:
        """One update at `share` of the whole training: linear warm-up, linear decay."""
        factor = min(share / WARM_UP, (1 - share) / (1 - WARM_UP))
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        logits, labels = self.reading.logits(step)
        loss = cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.optimiser.step()
        return loss.item(), len(labels)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean log-loss of a candidate of the validation slates, nats."""
        total = 0.0
        for step in self.held_out.in_order():
            total += cross_entropy(*self.held_out.logits(step), reduction="sum").item()
        return total / len(self.held_out.examples.labels)

    def _copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def _save(self, checkpoint: Path, fingerprint: str) -> None:
        """The run's state in one file, renamed into place: weights, the best, AdamW's moments, report."""
        groups = {"now": self._copy(), "best": self.best}
        for moment in MOMENTS:
            groups[moment] = {name: self.optimiser.state[w][moment] for name, w in self.weights.items()}
        tensors = {f"{group} {name}": t for group, named in groups.items() for name, t in named.items()}
        draft = checkpoint.with_suffix(f".{os.getpid()}")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, {"fingerprint": fingerprint, "report": json.dumps(asdict(self.report))})
        draft.replace(checkpoint)

    def _resume(self, checkpoint: Path, fingerprint: str) -> bool:
        """Go on from a checkpoint of the same training, if there is one."""
        if not checkpoint.exists():
            return False
        with safe_open(checkpoint, framework="pt") as stream:
            about = stream.metadata()
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if about["fingerprint"] != fingerprint:
            return False
        vars(self.report).update(json.loads(about["report"]))
        names = ("now", "best", *MOMENTS)
        groups = {group: {n: tensors[f"{group} {n}"] for n in self.weights} for group in names}
        self._set(groups["now"])
        self.best = groups["best"]
        for name, weight in self.weights.items():
            self.optimiser.state[weight] = {moment: groups[moment][name] for moment in MOMENTS}
        self.progress(f"resumed after epoch {len(self.report.train_loss)} from {checkpoint}")
        return True
