"""How a retriever is trained: windows, softmax over the catalogue, averaged weights, a checkpoint each epoch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lakerec.scorer.checkpoints import copied, moments, put, read, restore_moments, write
from lakerec.scorer.language_model import precision

if TYPE_CHECKING:
    from lakerec.scorer.retriever import Batch, Events, ItemSide, Retriever

WARM_UP = 100  # steps of linearly growing rate
CLIP = 1.0  # norm of the gradient
CHUNK = 2**20  # logits at a time: 4 MiB in float32 stay in a processor's cache
CHUNK_GPU = 2**26
ROUND = 8  # widths are padded to its multiples: oneDNN keeps a program of its own for every shape it multiplied
ROWS = 128  # the same for the rows of a softmax


@dataclass
class RetrieverReport:
    """How a training went; losses are mean nats per event; best_epoch counts from 1, 0: none was trained."""

    events: int = 0
    held: int = 0
    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list)

    @property
    def best_loss(self) -> float:
        """Validation loss of the weights that were kept."""
        return min(self.valid_loss, default=float("nan"))


class FullSoftmax(torch.autograd.Function):
    """Mean cross-entropy over all items; gradients are made chunk by chunk, so no (n, items) matrix is kept.

    The bias rides in the products as a column more, as a sum of two numbers in low precision. A softmax kept in
    bf16 and the target taken out of it in float32 take 0.4 of the time of a float32 softmax.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """f (n, size), vectors (items, size), bias (items,), targets (n,) -> loss ()."""
        size = f.shape[1]
        high = bias.to(dtype)
        table = torch.cat([vectors.to(dtype), high[:, None], (bias - high.float()).to(dtype)[:, None]], dim=1)
        step = -(-(CHUNK_GPU if f.is_cuda else CHUNK) // len(vectors) // ROWS) * ROWS
        low = f.new_zeros(-(-len(f) // ROWS) * ROWS, table.shape[1], dtype=dtype)  # rows of zeros have no gradient
        low[: len(f), :size], low[: len(f), size:] = f, 1.0
        wanted = nn.functional.pad(targets, (0, len(low) - len(f)))
        d_low, d_table = torch.empty(low.shape, device=f.device), torch.zeros(table.shape, device=f.device)
        chances = f.new_empty(len(low))
        for at in range(0, len(low), step):
            rows = low[at : at + step]
            share = (rows @ table.T).softmax(dim=1)
            chances[at : at + step] = share.gather(1, wanted[at : at + step, None])[:, 0]
            d_low[at : at + step] = share @ table
            d_table += share.T @ rows
        d_f = d_low[: len(f), :size] - vectors[targets]
        d_vectors = d_table[:, :size].index_add(0, targets, f, alpha=-1.0)
        d_bias = d_table[:, size] - torch.bincount(targets, minlength=len(bias))
        ctx.save_for_backward(d_f, d_vectors, d_bias)
        return -chances[: len(f)].clamp(min=1e-30).log().mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients made on the way."""
        d_f, d_vectors, d_bias = ctx.saved_tensors
        factor = grads[0] / len(d_f)
        return d_f * factor, d_vectors * factor, d_bias * factor, None, None


def full_softmax(f: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy (), nats."""
    return FullSoftmax.apply(f, vectors, bias, targets, dtype)


def sampled_softmax(
    f: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor
) -> Tensor:
    """Mean cross-entropy against `negatives` (n,) drawn with probabilities exp(log_q) (items,).

    The sum over the catalogue is estimated by the target and the others' exp(logit) / (n q) (Bengio, Senecal 2008).
    """
    right = (f * vectors[targets]).sum(dim=1) + bias[targets]
    others = f @ vectors[negatives].T + (bias - log_q)[negatives] - np.log(len(negatives))
    others = others.float().masked_fill(negatives[None] == targets[:, None], -torch.inf)
    return (torch.cat([right[:, None], others], dim=1).logsumexp(dim=1) - right).mean()


@torch.no_grad()
def likelihood(f: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor) -> float:
    """The sum of log p of the targets, float32."""
    total, step = 0.0, max(1, (CHUNK_GPU if f.is_cuda else CHUNK) // len(vectors))
    for at in range(0, len(f), step):
        logits = torch.addmm(bias, f[at : at + step], vectors.T)
        wanted = targets[at : at + step, None]
        total += (logits.gather(1, wanted)[:, 0] - logits.logsumexp(dim=1)).double().sum().item()
    return total


@dataclass(frozen=True)
class Windows:
    """Stretches of the events of a Histories that are read in one go.

    first (n,) the place of the first event read; length (n,) events read; person (n,); targets_from (n,): output j
    predicts event first + j and is trained on where targets_from <= j < targets_to.
    """

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    person: NDArray[np.int64]
    targets_from: NDArray[np.int64]
    targets_to: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.first)

    def take(self, places: NDArray[np.int64]) -> Windows:
        """Some of them, in the order given."""
        return Windows(*(column[places] for column in vars(self).values()))


def rounded(length: Any) -> Any:
    """Up to the next multiple of ROUND."""
    return -(-length // ROUND) * ROUND


def by_length(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Places of windows in batches of like lengths that fill at most `budget` places when padded."""
    order = np.argsort(lengths, kind="stable")
    widths, at = rounded(lengths[order] + 1), 0
    while at < len(order):
        end = at + 1
        while end < len(order) and widths[end] * (end + 1 - at) <= budget:
            end += 1
        yield order[at:end]
        at = end


def training_windows(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Windows:
    """Each person's events cut at a random place and every `size` from there; every event is a target once.

    A window that does not begin with the person's first event leaves its first output out: the window before it
    predicts that event.
    """
    offset = np.where(lengths > size, rng.integers(1, size + 1, len(lengths)), size)
    columns = []
    for person in np.flatnonzero(lengths):
        begins = np.concatenate([[0], np.arange(offset[person], lengths[person], size)])
        ends = np.append(begins[1:], lengths[person])
        columns.append(np.stack([begins, ends, np.full(len(begins), person)]))
    begins, ends, person = np.concatenate(columns, axis=1).astype(np.int64)
    last = ends == lengths[person]
    read = ends - begins - last  # the last event of all is predicted, not read
    found = Windows(starts[person] + begins, read, person, (begins > 0).astype(np.int64), ends - begins + ~last)
    return found.take(np.flatnonzero(found.targets_to > found.targets_from))


def validation_windows(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], held: NDArray[np.int64], size: int
) -> Windows:
    """Windows whose targets are each person's last held[u] events, half a window at most behind others."""
    stride, columns = max(1, size // 2), []
    for person in np.flatnonzero(held):
        ends = np.arange(lengths[person], lengths[person] - held[person], -stride)
        froms = np.maximum(ends - stride, lengths[person] - held[person])
        begins = np.maximum(ends - 1 - size, 0)
        columns.append(np.stack([begins, ends, froms, np.full(len(ends), person)]))
    begins, ends, froms, person = np.concatenate(columns, axis=1).astype(np.int64)
    return Windows(starts[person] + begins, ends - begins - 1, person, froms - begins, ends - begins)


class Run:
    """The epochs of one training and all that they change."""

    def __init__(
        self,
        model: Retriever,
        events: Events,
        held: NDArray[np.int64],
        items: ItemSide,
        epochs: int | None,
        progress: Callable[[str], None],
    ) -> None:
        self.model, self.events, self.held, self.items = model, events, held, items
        self.settings, self.progress = model.settings, progress
        self.epochs, self.validates = epochs or model.settings.epochs, epochs is None
        self.side = model.side(items)
        self.lengths = events.histories.lengths - held
        self.report = RetrieverReport(int(self.lengths.sum()), int(held.sum()))
        self.weights = dict(model.named_parameters())
        self.ema = copied(self.weights)
        self.best = self.ema
        self.optimiser = self._optimiser()
        fast = precision(model.place.type)
        self.dtype = torch.float32 if fast == torch.float16 else fast  # its gradients are not scaled
        self.log_q = self._log_q()

    def _optimiser(self) -> torch.optim.AdamW:
        """Weight decay on matrices and tables, not on biases and norms."""
        named = [w for w in self.weights.values() if w.numel()]
        decay, settings = self.settings.weight_decay, self.settings
        groups = [
            {"params": [w for w in named if w.ndim > 1], "weight_decay": decay},
            {"params": [w for w in named if w.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))

    def _log_q(self) -> Tensor:
        """log of the chance that a negative is each item: its share of the training events, each counted once more."""
        histories = self.events.histories
        seen = histories.items[histories.places >= np.repeat(self.held, histories.lengths)]
        counts = np.bincount(seen, minlength=len(self.items)) + 1.0
        return torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)).to(self.model.place)

    def fit(self, checkpoint: Path | None) -> None:
        """Train until the last epoch, the end of the budget or `patience` epochs brought nothing; set the best."""
        mark = self._fingerprint() if checkpoint else ""
        if checkpoint:
            self._resume(checkpoint, mark)
        while self._worth_going_on():
            self._epoch()
            if checkpoint:
                self._save(checkpoint, mark)
        put(self.weights, self.best if self.validates else self.ema)
        self.model.remember(self.items)

    def _worth_going_on(self) -> bool:
        report = self.report
        done = len(report.train_loss)
        if self.validates and done - report.best_epoch >= self.settings.patience:
            return False
        each = max(report.epoch_seconds, default=0.0)
        return done < self.epochs and (done == 0 or report.seconds + each <= 60 * self.settings.max_minutes)

    def _epoch(self) -> None:
        report, began = self.report, time.perf_counter()
        report.train_loss.append(self._train(len(report.train_loss)))
        done = len(report.train_loss)
        line = f"epoch {done}/{self.epochs}: training loss {report.train_loss[-1]:.4f}"
        if self.validates:
            report.valid_loss.append(self._validate())
            line += f", validation loss {report.valid_loss[-1]:.4f}"
            if report.valid_loss[-1] <= report.best_loss:
                report.best_epoch, self.best = done, {name: value.clone() for name, value in self.ema.items()}
        else:
            report.best_epoch = done
        report.epoch_seconds.append(time.perf_counter() - began)
        report.seconds += report.epoch_seconds[-1]
        self.progress(f"{line}, {report.epoch_seconds[-1]:.1f} s")

    def _train(self, epoch: int) -> float:
        """One epoch of steps; the mean loss of an event."""
        torch.manual_seed(self.settings.seed * 1_000_003 + epoch)
        rng = np.random.default_rng([self.settings.seed, epoch])
        windows = self._windows(rng)
        self.model.train()
        total, count = 0.0, 0
        for places in self._batches(windows.length, rng):
            loss, size = self._step(windows.take(places))
            total, count = total + loss * size, count + size
        return total / count

    def _windows(self, rng: np.random.Generator) -> Windows:
        return training_windows(self.events.histories.starts[:-1], self.lengths, self.settings.window, rng)

    def _batches(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Windows of like length together, in random order."""
        mixed = rng.permutation(len(lengths))
        budget = self.settings.batch * rounded(self.settings.window + 1)
        found = [mixed[places] for places in by_length(lengths[mixed], budget)]
        return [found[place] for place in rng.permutation(len(found))]

    def _step(self, windows: Windows) -> tuple[float, int]:
        """One update: the loss and the number of its events."""
        self.report.steps += 1
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, self.report.steps / WARM_UP)
        batch, flat, targets = self._batch(windows)
        loss = (self._sampled_loss if self.settings.sampled else self._full_loss)(batch, flat, targets)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.optimiser.step()
        self._average()
        return loss.item(), len(targets)

    def _batch(self, windows: Windows) -> tuple[Batch, Tensor, Tensor]:
        """Windows as tensors; the places (n,) of the outputs trained on, counted through, and their items (n,)."""
        batch = self.events.batch(windows, self.model.place)
        width = batch.items.shape[1]
        steps = np.arange(width)[None]
        row, step = np.nonzero((steps >= windows.targets_from[:, None]) & (steps < windows.targets_to[:, None]))
        targets = self.events.histories.items[windows.first[row] + step].astype(np.int64)
        arrays = (row * width + step, targets)
        flat, wanted = (torch.from_numpy(array).to(self.model.place) for array in arrays)
        return batch, flat, wanted

    def _fast(self) -> torch.autocast:
        """Matrix products in the device's precision."""
        return torch.autocast(self.model.place.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _full_loss(self, batch: Batch, flat: Tensor, targets: Tensor) -> Tensor:
        with self._fast():
            vectors, bias = self.model.tower(self.side)
            f = self.model(batch, vectors).flatten(0, 1)[flat]
        return full_softmax(f, vectors, bias, targets, self.dtype)

    def _sampled_loss(self, batch: Batch, flat: Tensor, targets: Tensor) -> Tensor:
        """Only the items that are read, wanted or drawn get a vector."""
        drawn = torch.multinomial(self.log_q.exp(), self.settings.sampled, replacement=True)
        used, where = torch.cat([batch.items.flatten(), targets, drawn]).unique(return_inverse=True)
        read, targets, drawn = where.split([batch.items.numel(), len(targets), len(drawn)])
        with self._fast():
            vectors, bias = self.model.tower(self.side.take(used), used)
            f = self.model(replace(batch, items=read.view_as(batch.items)), vectors).flatten(0, 1)[flat]
            return sampled_softmax(f, vectors, bias, targets, drawn, self.log_q[used])

    @torch.no_grad()
    def _average(self) -> None:
        """The moving average of the weights follows faster in the first steps."""
        decay = min(self.settings.ema, self.report.steps / (10 + self.report.steps))
        torch._foreach_lerp_(list(self.ema.values()), list(self.weights.values()), 1 - decay)

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean -log p of the held-out events by the averaged weights, nats."""
        now = copied(self.weights)
        put(self.weights, self.ema)
        self.model.eval()
        histories, size = self.events.histories, self.settings.window
        windows = validation_windows(histories.starts[:-1], histories.lengths, self.held, size)
        vectors, bias = self.model.tower(self.side)
        total = 0.0
        for places in by_length(windows.length, self.settings.batch * rounded(size + 1)):
            batch, flat, targets = self._batch(windows.take(places))
            total -= likelihood(self.model(batch, vectors).flatten(0, 1)[flat], vectors, bias, targets)
        put(self.weights, now)
        return total / self.report.held

    def _fingerprint(self) -> str:
        """A hash of everything that decides a training: a checkpoint of another one is not resumed."""
        digest = hashlib.sha256(f"{self.settings.model_dump_json()} {self.epochs} {self.validates}".encode())
        h, graph = self.events.histories, self.items.graph
        arrays: list[NDArray[Any]] = [h.starts, h.items, h.times, h.types, h.at, self.held, self.items.text]
        arrays += [] if graph is None else [graph.indptr, graph.indices, graph.data]
        arrays += [] if self.events.profile is None else [self.events.profile]
        arrays += [weight.cpu().numpy() for weight in self.ema.values()]
        for array in arrays:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _save(self, checkpoint: Path, fingerprint: str) -> None:
        """The run's state: weights, averages, the best, AdamW's moments, report."""
        groups = {"now": copied(self.weights), "ema": self.ema, "best": self.best}
        report = json.dumps(asdict(self.report))
        write(checkpoint, fingerprint, groups | moments(self.weights, self.optimiser), {"report": report})

    def _resume(self, checkpoint: Path, fingerprint: str) -> None:
        """Go on from a checkpoint of the same training, if there is one."""
        found = read(checkpoint, fingerprint, self.model.place, self.progress)
        if found is None:
            return
        tensors, about = found
        vars(self.report).update(json.loads(about["report"]))
        now, self.ema, self.best = (
            {name: tensors[f"{group} {name}"] for name in self.weights} for group in ("now", "ema", "best")
        )
        put(self.weights, now)
        restore_moments(self.weights, tensors, self.optimiser)
        self.progress(f"resumed after epoch {len(self.report.train_loss)} from {checkpoint}")
