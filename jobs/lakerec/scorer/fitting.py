"""The epochs of one training: steps, updates, validation, early stopping, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lakerec import metrics
from lakerec.config import Training
from lakerec.errors import ModelError
from lakerec.scorer import parallel
from lakerec.scorer.checkpoints import copied, moments, put, read, restore_moments, write
from lakerec.scorer.losses import Objective
from lakerec.scorer.model import SlateScorer
from lakerec.scorer.prior import start, unread
from lakerec.scorer.reading import CachedReading, Examples, Reading

HEAD_RATE = 5.0  # the head learns so many times faster than the encoder, which has little to change
WARM_UP = 0.1  # share of all steps
CLIP = 1.0  # norm of the gradient
REPORTS = 4  # progress lines an epoch
SAVED_EVERY = 300.0  # seconds of an epoch that a kill may cost
FIRST_SCALE = 1024.0  # of fp16's gradients: a tiny training has no steps to lose on the way down from 65536


@dataclass
class TrainingReport:
    """How a training went; [0] of the validation's curves is that of the prior alone.

    Losses are mean nats per candidate for bce, per slate for losses over slates. `passed_over` of the candidates
    were put in to learn from. The first `ahead` epochs were those of a stage before the last. `scale` and `shift`
    made log odds of the logits, where they were learned as something else.
    """

    base_model: str
    slates: int
    candidates: int
    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    valid_ndcg: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    language_model: bool = True
    scale: float = 1.0
    shift: float = 0.0
    passed_over: int = 0
    ahead: int = 0

    @property
    def prior_loss(self) -> float:
        """Validation loss of the features alone."""
        return self.valid_loss[0]

    @property
    def best_loss(self) -> float:
        """Validation loss of the weights that were kept."""
        return self.valid_loss[self.best_epoch]

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second, validation included."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Amid:
    """How far an epoch is: its steps that were taken, their loss and its divisor, and the seconds they took."""

    steps: int = 0
    loss: float = 0.0
    count: float = 0.0
    seconds: float = 0.0


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
        self.budget = math.inf if settings.max_minutes is None else 60 * settings.max_minutes
        began = time.perf_counter()
        self.objective, self.valid_objective = Objective(settings, examples), Objective(settings, held_out)
        kind = CachedReading if settings.freeze == "head" else Reading
        self.reading = kind(model, examples, settings.token_budget, self.objective.by_slate)
        self.held_out = kind(model, held_out, settings.token_budget, self.objective.by_slate)
        self.counts = np.add.reduceat(self.objective.counts, self.reading.starts)
        self.slates = int(np.count_nonzero(self.counts)) if self.objective.by_slate else report.slates
        self.weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
        self.optimiser = self._optimiser()
        place, narrow = model.mean.device.type, model.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(place, init_scale=FIRST_SCALE, enabled=narrow)
        self.amid, self.save = Amid(), lambda: None
        report.seconds += time.perf_counter() - began
        report.tokens += self._tokens_read()

    def _optimiser(self) -> torch.optim.AdamW:
        inside = [w for name, w in self.weights.items() if name.startswith("encoder.")]
        outside = [w for name, w in self.weights.items() if not name.startswith("encoder.")]
        rate = self.settings.learning_rate
        groups = [{"params": inside, "rate": rate}, {"params": outside, "rate": HEAD_RATE * rate}]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)

    def begin(self) -> None:
        """Tell and check the start, and validate it."""
        self.progress(start(self.model, self.reading.examples, self.slates))
        self.validate_start()

    def validate_start(self) -> None:
        """A correction that starts at zero need not be read."""
        self._validate(unread(self.model, self.held_out.examples))

    def fit(self, checkpoint: Path, fingerprint: str, fitted: bool = False) -> None:
        """Train until the last epoch, until `patience` epochs brought nothing or the budget ends; leaves the best.

        fitted: all of it stands in the checkpoint; ModelError where it does not.
        """
        if not (resumed := self._resume(checkpoint, fingerprint)):
            if fitted:
                raise ModelError(f"{checkpoint}: not what the training's own processes have left; train again")
            if not self.report.ahead:
                self.begin()
            self.best = copied(self.weights)
        if parallel.rank() == 0:
            self.save = partial(self._save, checkpoint, fingerprint)
        if self.report.ahead and not resumed:
            self.save()  # the stage before need not read its slates again
            if self._worth_going_on():
                self.progress(f"now {self.settings.freeze}, from the head of epoch {self.report.best_epoch}")
        while self._worth_going_on():
            self._epoch()
            self.save()
        self.save = lambda: None  # a cycle would keep what was read in memory
        if self._spent() >= 1 and not fitted and (self._done or not self.report.ahead):  # else it has been told
            self.progress(
                f"the {self.budget / 60:g} minutes of scorer.training.max_minutes are used up: the training ends in "
                f"epoch {self._done} of {self.settings.epochs} with the best weights so far"
            )
        put(self.weights, self.best)

    @property
    def _done(self) -> int:
        """The epochs of this stage that have been trained and validated."""
        return len(self.report.train_loss) - self.report.ahead

    def _worth_going_on(self) -> bool:
        """What a killed run has trained of an epoch is validated, too."""
        since = self._done - max(self.report.best_epoch - self.report.ahead, 0)
        wanted = self._done < self.settings.epochs and since < self.settings.patience
        return wanted and (self.amid.steps > 0 or self._spent() < 1)

    def _took(self) -> float:
        """The seconds of the epochs so far, also of those that a killed run has left."""
        return sum(self.report.epoch_seconds) + self.amid.seconds

    def _spent(self) -> float:
        """The share of the time budget, as stages before have left it, that the epochs have taken; 0 without a budget.

        By rank 0's clock.
        """
        if self.budget == math.inf:
            return 0.0
        before = sum(self.report.epoch_seconds[: self.report.ahead])
        left = self.budget - before
        return parallel.from_first((self._took() - before) / left if left > 0 else 1.0)

    def _epoch(self) -> None:
        report, began, before = self.report, time.perf_counter(), self.amid.seconds
        tokens = self._tokens_read()
        report.train_loss.append(self._train(self._done))
        self._validate(self.read_held_out())
        seconds = time.perf_counter() - began
        report.epoch_seconds.append(before + seconds)
        report.seconds += seconds
        report.tokens += self._tokens_read() - tokens
        done = len(report.train_loss)
        if self._better(done):
            report.best_epoch = done
            self.best = copied(self.weights)
        self.progress(
            f"epoch {self._done}: validation loss {report.valid_loss[-1]:.4f}, ndcg@10 {report.valid_ndcg[-1]:.4f}; "
            f"features alone {report.prior_loss:.4f}, {report.valid_ndcg[0]:.4f}"
        )

    def _better(self, epoch: int) -> bool:
        """Whether an epoch validates better than the best before it; nan does not."""
        report = self.report
        if self.settings.stop == "ndcg":
            return report.valid_ndcg[epoch] > report.valid_ndcg[report.best_epoch]
        return report.valid_loss[epoch] < report.best_loss

    def _tokens_read(self) -> int:
        return self.reading.tokens_read + self.held_out.tokens_read

    def _train(self, epoch: int) -> float:
        """One epoch of updates, or what the budget leaves of it; the mean loss."""
        among = np.flatnonzero(self.counts)
        steps = self.reading.shuffled(np.random.default_rng([self.settings.seed, epoch]), among)
        saved, marks = time.perf_counter(), [round(part * len(steps) / REPORTS) for part in range(1, REPORTS + 1)]
        began = saved - self.amid.seconds
        for first in range(self.amid.steps, len(steps), self.settings.accumulate):
            if (spent := self._spent()) >= 1:
                break
            last = min(first + self.settings.accumulate, len(steps))
            middle = (first + last) / 2 / len(steps)
            loss, weight = self._update(steps[first:last], max((epoch + middle) / self.settings.epochs, spent))
            now, share = time.perf_counter(), last / len(steps)
            self.amid = Amid(last, self.amid.loss + loss, self.amid.count + weight, now - began)
            if any(first < mark <= last for mark in marks):
                self._tell(epoch, share, self.amid.loss / self.amid.count, self.amid.seconds / share)
            if now - saved > SAVED_EVERY:
                self.save()
                saved = now
        mean, self.amid = self.amid.loss / self.amid.count, Amid()
        return mean

    def _tell(self, epoch: int, share: float, loss: float, seconds: float) -> None:
        """One line of progress; seconds: of a whole epoch."""
        left = min(seconds * (self.settings.epochs - epoch - share), max(self.budget - self._took(), 0.0))
        seen, speed = self.slates * (epoch + share), self.slates / seconds
        self.progress(
            f"epoch {epoch + 1}/{self.settings.epochs} {share:4.0%}  loss {loss:.4f}  {seen:.0f} slates seen, "
            f"{speed:.1f} slates/s  at most {left / 60:.1f} min left"
        )

    def _update(self, steps: Sequence[NDArray[np.int64]], share: float) -> tuple[float, float]:
        """One update, amid which `share` of the training is done (linear warm-up and decay); as `gradients`."""
        factor = min(share / WARM_UP, (1 - share) / (1 - WARM_UP))
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        found = self.gradients(steps)
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return found

    def gradients(self, steps: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
        """Leave the gradients of the mean loss over several steps and all processes; the loss's sum and its divisor."""
        count = float(sum(self.counts[step].sum() for step in steps))
        total = torch.zeros((), device=self.model.mean.device)
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight)
        for step in steps:
            if len(mine := parallel.share(step)):
                loss = self.objective.total(*self.reading.logits(mine))
                self.scaler.scale(loss / count).backward()
                total += loss.detach()
        parallel.add_up([*(w.grad for w in self.weights.values() if w.grad is not None), total])
        return float(total), count

    @torch.no_grad()
    def read_held_out(self) -> Tensor:
        """Logits (n,) of the validation slates' candidates, the same in every process."""
        found = torch.zeros(len(self.held_out.examples.labels), device=self.model.mean.device)
        for step in self.held_out.in_order():
            if len(mine := parallel.share(step)):
                logits, rows = self.held_out.logits(mine)
                found[rows] = logits
        parallel.add_up([found])
        return found

    def _validate(self, logits: Tensor) -> None:
        """Append mean loss and NDCG@10 by the validation's logits (n,) to the report, nan where one is not finite."""
        objective, examples = self.valid_objective, self.held_out.examples
        loss = ndcg = float("nan")
        if bool(torch.isfinite(logits).all()):
            loss = float(objective.total(logits, np.arange(len(logits)))) / max(float(objective.counts.sum()), 1.0)
            ndcg = _ndcg(logits.cpu().numpy(), examples)
        self.report.valid_loss.append(loss)
        self.report.valid_ndcg.append(ndcg)

    def _save(self, checkpoint: Path, fingerprint: str) -> None:
        """The run's state: weights, the best, AdamW's moments, report."""
        groups = {"now": copied(self.weights), "best": self.best}
        about = {"report": asdict(self.report), "scaler": self.scaler.state_dict(), "amid": asdict(self.amid)}
        write(checkpoint, fingerprint, groups | moments(self.weights, self.optimiser), _as_json(about))

    def _resume(self, checkpoint: Path, fingerprint: str) -> bool:
        """Go on from a checkpoint of the same training, if there is one."""
        found = read(checkpoint, fingerprint, self.model.mean.device, self.progress)
        if found is None:
            return False
        tensors, about = found
        vars(self.report).update(json.loads(about["report"]))
        self.amid = Amid(**json.loads(about["amid"]))
        if scaler := json.loads(about["scaler"]):
            self.scaler.load_state_dict(scaler)
        now, self.best = ({name: tensors[f"{group} {name}"] for name in self.weights} for group in ("now", "best"))
        put(self.weights, now)
        restore_moments(self.weights, tensors, self.optimiser)
        steps = f" and {self.amid.steps} steps" if self.amid.steps else ""
        self.progress(f"resumed after epoch {self._done}{steps} from {checkpoint}")
        return True


def _as_json(about: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in about.items()}


def _ndcg(logits: NDArray[np.float32], examples: Examples) -> float:
    """Mean NDCG@10 of slates with targets, nan without any."""
    if not any(examples.targets):
        return float("nan")
    inner = examples.starts[1:-1]
    scores, labels = np.split(logits, inner), np.split(examples.labels.numpy(), inner)
    return float(np.nanmean(metrics.evaluate(scores, labels, examples.targets, [10])["ndcg@10"]))
