"""The retriever: a sequence model of a person's events whose scores of all items are one matrix product."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag, scaled_dot_product_attention, silu

from lakerec.config import Retriever as RetrieverSettings
from lakerec.errors import ContractError, ModelError, NotEnoughDataError
from lakerec.histories import Histories
from lakerec.scorer.language_model import device
from lakerec.scorer.retriever_training import RetrieverReport, Run, Windows, by_length, rounded

FORMAT = 1
SETTINGS, WEIGHTS = "retriever.json", "retriever.safetensors"
BUCKETS = 32  # of gaps: 0 none, then one for each doubling of the seconds; the last begins at 34 years
SCALE = 0.02  # standard deviation of a vector's entries before training
HIDDEN = -1e4  # a logit that no softmax and no silu lets through
SCORED = 2**24  # scores computed at a time (64 MiB in float32)


@dataclass(frozen=True)
class ItemSide:
    """What is known of the catalogue's items.

    text (items, d_text) float32, language-model vectors of length 1, zeros where an item has no text;
    graph (items, nodes) float32, the membership of items in (relation, entity) nodes; None without a graph.
    """

    text: NDArray[np.float32]
    graph: sparse.csr_matrix | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.text)


@dataclass(frozen=True)
class Side:
    """An ItemSide as tensors: text (items, d); item i is in the nodes[starts[i] : starts[i + 1]], in these shares."""

    text: Tensor
    nodes: Tensor
    shares: Tensor
    starts: Tensor

    @classmethod
    def of(cls, items: ItemSide, known_nodes: int, place: torch.device) -> Side:
        """Nodes that were not trained are left out; an item's shares of its nodes add up to 1."""
        graph = sparse.csr_matrix((len(items), 0), dtype=np.float32) if items.graph is None else items.graph
        graph = sparse.csr_matrix(graph)[:, :known_nodes]
        total = np.asarray(graph.sum(axis=1)).ravel()
        shares = graph.data / np.repeat(np.maximum(total, 1e-12), np.diff(graph.indptr))
        arrays = (
            items.text.astype(np.float32),
            graph.indices.astype(np.int64),
            shares.astype(np.float32),
            graph.indptr.astype(np.int64),
        )
        return cls(*(torch.from_numpy(array).to(place) for array in arrays))

    def __len__(self) -> int:
        """Number of items."""
        return len(self.text)

    def take(self, places: Tensor) -> Side:
        """Some of the items, in the order given."""
        lengths = (self.starts[1:] - self.starts[:-1])[places]
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        source = (self.starts[places] - starts[:-1]).repeat_interleave(lengths)
        source = source + torch.arange(len(source), device=source.device)
        return Side(self.text[places], self.nodes[source], self.shares[source], starts)


class Catalogue(NamedTuple):
    """What a retriever makes of items: vectors (items, size) and biases (items,)."""

    vectors: Tensor
    biases: Tensor


@dataclass(frozen=True)
class Batch:
    """Windows as tensors (b, t): at place 0 a start token (code 0: the person's first events follow, 1: not).

    items, gaps and types are those of the event read at each place; ages (b, t) float64, seconds since the window's
    first event; until the bucket of the gap to the next event; z (b, d_text); last (b,) the last event's place.
    """

    items: Tensor
    gaps: Tensor
    types: Tensor
    ages: Tensor
    until: Tensor
    starts: Tensor
    z: Tensor
    last: Tensor


def gap_buckets(days: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket 1 .. BUCKETS - 1 of gaps in days: 1 + floor(log2(1 + seconds)); negative gaps count as 0."""
    seconds = np.maximum(days, 0.0) * 86400
    return np.minimum(1 + np.floor(np.log2(1 + seconds)), BUCKETS - 1).astype(np.int64)


class Events:
    """A Histories made ready to be cut into batches."""

    def __init__(self, histories: Histories, profile: NDArray[np.floating] | None, d_text: int) -> None:
        self.histories = histories
        self.profile = None if profile is None else np.asarray(profile, dtype=np.float32)
        self.d_text = d_text
        gaps = np.diff(histories.times, prepend=0.0)
        self.gaps = gap_buckets(gaps)
        starts = histories.starts[:-1][histories.lengths > 0]
        self.gaps[starts] = 0
        behind = np.append(self.gaps[1:], 0)
        ends = histories.starts[1:][histories.lengths > 0] - 1
        behind[ends] = gap_buckets(histories.at[histories.lengths > 0] - histories.times[ends])
        self.until = behind

    def batch(self, windows: Windows, place: torch.device) -> Batch:
        """The tensors of some windows; padding stands behind the events, where no causal query looks."""
        width = rounded(int(windows.length.max()) + 1)
        steps = np.arange(width)[None]
        real = (steps >= 1) & (steps <= windows.length[:, None])
        source = np.where(real, windows.first[:, None] + steps - 1, 0)
        h = self.histories
        z = np.zeros((len(windows), self.d_text), dtype=np.float32)
        if self.profile is not None:
            z = self.profile[windows.person]
        columns = (
            _read(h.items, source, real),
            _read(self.gaps, source, real),
            _read(h.types, source, real),
            self._ages(source, real),
            _read(self.until, source, real),
            (windows.first > h.starts[windows.person]).astype(np.int64),
            z,
            windows.length,
        )
        return Batch(*(torch.from_numpy(column).to(place) for column in columns))

    def _ages(self, source: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Seconds since the first event read, 0 at the start token and in the padding."""
        if not len(self.histories.times):
            return np.zeros(source.shape)
        times = self.histories.times[source]
        first = times[:, 1:2] if source.shape[1] > 1 else times
        return np.where(real, (times - first) * 86400, 0.0)

    def last_windows(self, length: int) -> Windows:
        """One window for each person: the last `length` events."""
        h = self.histories
        size = np.minimum(h.lengths, length)
        none = np.zeros(len(h), dtype=np.int64)
        return Windows(h.starts[1:] - size, size, np.arange(len(h)), none, none)


def _read(values: NDArray[Any], source: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """values[source] where real, else 0, as int64."""
    if not len(values):
        return np.zeros(source.shape, dtype=np.int64)
    return np.where(real, values[source], 0).astype(np.int64)


class ItemTower(nn.Module):
    """Item vector = projection of its text + its id's vector + mean of the vectors of its graph nodes."""

    def __init__(self, settings: RetrieverSettings, n_items: int, d_text: int, n_nodes: int) -> None:
        super().__init__()
        self.drop = settings.id_dropout
        self.text = nn.Linear(d_text, settings.size, bias=False)
        self.ids = nn.Parameter(torch.randn(n_items, settings.size) * SCALE)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.nodes = nn.Parameter(torch.randn(n_nodes, settings.size) * SCALE)

    def forward(self, side: Side, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors (items, size) and biases (items,) of all items, or of those at `places` that `side` describes.

        In training whole ids are dropped, vector and bias.
        """
        ids, bias = self._known(len(side)) if places is None else (embedding(places, self.ids), self.bias[places])
        if self.training and self.drop:
            keep = (torch.rand(len(side), device=ids.device) >= self.drop).float()
            ids, bias = ids * keep[:, None], bias * keep
        vectors = self.text(side.text).float() + ids
        if len(self.nodes) and len(side.nodes):
            bags = {"per_sample_weights": side.shares, "mode": "sum", "include_last_offset": True}
            vectors = vectors + embedding_bag(side.nodes, self.nodes, side.starts, **bags)  # type: ignore[arg-type]
        return vectors, bias

    def _known(self, count: int) -> tuple[Tensor, Tensor]:
        """The ids' vectors and biases, zeros for the items that were not trained."""
        extra = count - len(self.ids)
        return nn.functional.pad(self.ids, (0, 0, 0, extra)), nn.functional.pad(self.bias, (0, extra))


class Dropout(nn.Module):
    """Dropout by random bytes (its rate is rounded to 1 / 256): an eighth of the random numbers nn.Dropout draws."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.kept = 256 - round(256 * rate)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        if not self.training or self.kept == 256:
            return x
        bits = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = bits.view(torch.uint8)[: x.numel()].view(x.shape) < self.kept
        return x * keep.to(x.dtype).mul_(256 / max(1, self.kept))


class Lookup(torch.autograd.Function):
    """A small table's rows, channels first: its gradient by counting takes a third of nn.Embedding's time."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        """table (rows, channels), index (...) int32 -> (channels, ...)."""
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return table.index_select(0, index.flatten()).T.contiguous().view(-1, *index.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The sum of the gradients of each row's copies."""
        index = ctx.saved_tensors[0].flatten()
        sums = [torch.bincount(index, channel.flatten().float(), minlength=ctx.rows) for channel in grads[0]]
        return torch.stack(sums, dim=1).to(grads[0].dtype), None


class RelativeBias(nn.Module):
    """What is added to attention's logits: by distance in places and by distance in time (HSTU's rab)."""

    def __init__(self, settings: RetrieverSettings) -> None:
        super().__init__()
        self.layers, self.relative = settings.layers, settings.relative
        width = settings.layers * settings.heads if settings.relative else 0
        self.by_place = nn.Parameter(torch.zeros(settings.window + 1, width))
        self.by_time = nn.Parameter(torch.zeros(BUCKETS, width))

    def forward(self, ages: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """For each layer (b or 1, heads or 1, t, t), from the events' ages (b, t) in seconds; HIDDEN where later."""
        steps = torch.arange(ages.shape[1], device=ages.device)
        distance = steps[:, None] - steps[None]
        later = HIDDEN * (distance < 0).float()
        if not self.relative:
            return [later[None, None].to(dtype)] * self.layers
        seconds = (ages[:, :, None] - ages[:, None]).float().clamp(min=0)
        since = (1 + torch.log2(1 + seconds).int()).clamp(max=BUCKETS - 1)
        by_place = embedding(distance.clamp(min=0, max=len(self.by_place) - 1), self.by_place).permute(2, 0, 1) + later
        bias = Lookup.apply(self.by_time.to(dtype), since) + by_place[:, None].to(dtype)
        return list(bias.unflatten(0, (self.layers, -1)).transpose(1, 2))


class TransformerBlock(nn.Module):
    """Pre-norm causal transformer block (Vaswani et al. 2017; SASRec, Kang, McAuley 2018)."""

    def __init__(self, settings: RetrieverSettings) -> None:
        super().__init__()
        size, self.heads = settings.size, settings.heads
        self.norm, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.drop = Dropout(settings.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(b, t, size) to the same; `bias` as RelativeBias makes it."""
        q, k, v = (_split(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=2))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class HstuBlock(nn.Module):
    """Pointwise attention, gated (HSTU, Zhai et al. 2024): y = f2(norm(silu(q k' + rab) v) * u)."""

    def __init__(self, settings: RetrieverSettings) -> None:
        super().__init__()
        size, self.heads = settings.size, settings.heads
        self.norm, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.uvqk, self.out = nn.Linear(size, 4 * size), nn.Linear(size, size)
        self.drop = Dropout(settings.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(b, t, size) to the same; `bias` as RelativeBias makes it."""
        u, v, q, k = silu(self.uvqk(self.norm(x))).chunk(4, dim=2)
        logits = _split(q, self.heads) @ _split(k, self.heads).transpose(2, 3) + bias.to(q.dtype)
        mixed = (silu(logits) @ _split(v, self.heads)).transpose(1, 2).flatten(2)
        return x + self.out(self.drop(self.norm2(mixed) * u))


def _split(x: Tensor, heads: int) -> Tensor:
    """(b, t, size) to (b, heads, t, size / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class Retriever(nn.Module):
    """log p(item | x, z) = log softmax of f . item + bias with f = x W1 + z W2, x the events, z the profile's text."""

    def __init__(self, settings: RetrieverSettings, n_items: int, d_text: int, n_nodes: int, n_types: int) -> None:
        super().__init__()
        if settings.size % settings.heads:
            raise ContractError(f"size {settings.size} is not a multiple of {settings.heads} heads")
        self.settings, self.n_types = settings, n_types
        size = settings.size
        self.tower = ItemTower(settings, n_items, d_text, n_nodes)
        self.starts, self.places = _table(2, size), _table(settings.window + 1, size)
        self.gaps, self.types = _table(BUCKETS, size), _table(n_types, size)
        kind = HstuBlock if settings.block == "hstu" else TransformerBlock
        self.blocks = nn.ModuleList([kind(settings) for _ in range(settings.layers)])
        self.bias = RelativeBias(settings)
        self.drop, self.norm = Dropout(settings.dropout), nn.LayerNorm(size)
        self.w1, self.w2 = nn.Linear(size, size), nn.Linear(d_text, size, bias=False)
        self.until = _table(BUCKETS if settings.target_gap else 0, size)
        self.register_buffer("vectors", torch.zeros(n_items, size))  # of the catalogue trained on
        self.register_buffer("biases", torch.zeros(n_items))

    @property
    def shape(self) -> dict[str, int]:
        """The sizes of the tables, as the constructor takes them."""
        tower = self.tower
        sizes = (len(tower.ids), tower.text.in_features, len(tower.nodes), self.n_types)
        return dict(zip(("n_items", "d_text", "n_nodes", "n_types"), sizes, strict=True))

    @property
    def place(self) -> torch.device:
        """The device the weights lie on."""
        return self.tower.ids.device

    def forward(self, batch: Batch, vectors: Tensor) -> Tensor:
        """f (b, t, size) float32 behind each event read, `vectors` (items, size) being the items'."""
        x = self._read(batch, vectors)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        for block, bias in zip(self.blocks, self.bias(batch.ages, dtype), strict=True):
            x = block(x, bias)
        f = self.w1(self.norm(x)).float() + self.w2(batch.z).float()[:, None]
        if self.settings.target_gap:
            f = f + embedding(self._until(batch), self.until)
        return f

    def _read(self, batch: Batch, vectors: Tensor) -> Tensor:
        """What goes in: the item, its place in the window, the gap before it, its type; a start token at place 0."""
        x = embedding(batch.items, vectors) * math.sqrt(self.settings.size) + embedding(batch.gaps, self.gaps)
        if self.n_types > 1:
            x = x + embedding(batch.types.clamp(max=self.n_types - 1), self.types)
        start = embedding(batch.starts, self.starts)[:, None]
        steps = torch.arange(x.shape[1], device=x.device).clamp(max=self.settings.window)  # padding beyond
        x = torch.cat([start, x[:, 1:]], dim=1) + self.places[steps]
        return self.drop(x)

    def _until(self, batch: Batch) -> Tensor:
        """The bucket of the gap to what is predicted, in training unknown (0) half of the time."""
        if not self.training:
            return batch.until
        return batch.until * (torch.rand(batch.until.shape, device=self.place) < 0.5)

    def side(self, items: ItemSide) -> Side:
        """An ItemSide as tensors; ContractError where it does not fit the weights."""
        if items.text.shape[1] != self.tower.text.in_features or len(items) < len(self.tower.ids):
            raise ContractError(
                f"items of {items.text.shape} text vectors; the retriever was trained on {len(self.tower.ids)} items "
                f"with vectors of {self.tower.text.in_features}: append new items, change no place"
            )
        return Side.of(items, len(self.tower.nodes), self.place)

    @torch.no_grad()
    def remember(self, items: ItemSide) -> None:
        """Keep the vectors of the catalogue trained on, for callers that bring none."""
        self.eval()
        self.vectors, self.biases = self.tower(self.side(items))

    @torch.no_grad()
    def forget(self, gone: NDArray[np.bool_], items: ItemSide) -> None:
        """Read the items `gone` (items,) as those that were not trained: by text and graph alone."""
        gone = gone[: len(self.tower.ids)]
        if gone.any():
            self.tower.ids[gone] = 0
            self.tower.bias[gone] = 0
            self.remember(items)

    @torch.no_grad()
    def catalogue(self, items: ItemSide | Catalogue | None) -> Catalogue:
        """As `score` multiplies it; without items that of the training. Made once where people are many."""
        self.eval()
        if isinstance(items, Catalogue):
            return items
        return Catalogue(self.vectors, self.biases) if items is None else Catalogue(*self.tower(self.side(items)))

    def item_vectors(self, items: ItemSide | Catalogue | None = None) -> NDArray[np.float32]:
        """(items, size)."""
        return self.catalogue(items)[0].cpu().numpy()

    def item_biases(self, items: ItemSide | Catalogue | None = None) -> NDArray[np.float32]:
        """(items,): what is added to the product of user and item vector."""
        return self.catalogue(items)[1].cpu().numpy()

    def user_vectors(
        self,
        histories: Histories,
        items: ItemSide | Catalogue | None = None,
        profile: NDArray[np.floating] | None = None,
    ) -> NDArray[np.float32]:
        """f (users, size) as of histories.at, from the last `window` events of a positive weight."""
        return self._users(histories, self.catalogue(items)[0], profile).cpu().numpy()

    @torch.no_grad()
    def _users(self, histories: Histories, vectors: Tensor, profile: NDArray[np.floating] | None) -> Tensor:
        histories = histories.chosen()
        if histories.items.max(initial=0) >= len(vectors):
            raise ContractError(
                f"the histories name more items than the {len(vectors)} of the catalogue: bring `items`"
            )
        events = Events(histories, profile, self.tower.text.in_features)
        windows = events.last_windows(self.settings.window)
        found = torch.zeros(len(windows), self.settings.size, device=self.place)
        for places in by_length(windows.length, self.settings.batch * rounded(self.settings.window + 1)):
            batch = events.batch(windows.take(places), self.place)
            f = self(batch, vectors)
            rows = torch.arange(len(places), device=self.place)
            found[torch.from_numpy(places).to(self.place)] = f[rows, batch.last]
        return found

    @torch.no_grad()
    def score(
        self,
        histories: Histories,
        items: ItemSide | Catalogue | None = None,
        profile: NDArray[np.floating] | None = None,
    ) -> NDArray[np.float32]:
        """log p (users, items) float32; `items` may hold more than were trained on, new ones behind the old.

        profile (users, d_text): the text vector of the profile or query, zeros where there is none.
        """
        vectors, biases = self.catalogue(items)
        users = self._users(histories, vectors, profile)
        found = np.empty((len(users), len(vectors)), dtype=np.float32)
        step = max(1, SCORED // max(1, len(vectors)))
        for at in range(0, len(users), step):
            logits = torch.addmm(biases, users[at : at + step], vectors.T)
            found[at : at + step] = torch.log_softmax(logits, dim=1).cpu().numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write settings and weights beside `folder` and rename them there."""
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        try:
            save_file({k: v.cpu().contiguous() for k, v in self.state_dict().items()}, draft / WEIGHTS)
            about = {"format": FORMAT, "settings": self.settings.model_dump(mode="json"), "shape": self.shape}
            (draft / SETTINGS).write_text(json.dumps(about, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Retriever:
        """A retriever ready to score; ModelError where there is none or of another format."""
        try:
            about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this release reads {FORMAT}")
            model = cls(RetrieverSettings(**about["settings"]), **about["shape"])
            model.load_state_dict(load_file(folder / WEIGHTS))
        except Exception as error:  # safetensors' and torch's errors have no common root
            raise ModelError(f"{folder}: not a retriever that can be loaded ({error}); train again") from error
        return model.to(device()).eval()


def _table(rows: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, size) * SCALE)


def fit(
    histories: Histories,
    held: NDArray[np.int64],
    items: ItemSide,
    settings: RetrieverSettings,
    checkpoint: Path | None = None,
    warm: Retriever | None = None,
    profile: NDArray[np.floating] | None = None,
    epochs: int | None = None,
    progress: Callable[[str], None] = print,
) -> tuple[Retriever, RetrieverReport]:
    """Train on the events before each person's last held[u]; keep the weights that predict those best.

    With `epochs`: exactly so many, without validation. A run that was killed goes on from `checkpoint`.
    """
    kept = histories.weights > 0
    counted = np.bincount(histories.users[kept & (histories.places < np.repeat(held, histories.lengths))])
    held = np.pad(counted, (0, len(histories) - len(counted))).astype(np.int64)
    chosen = histories.chosen()
    if epochs is None and not held.any():
        raise NotEnoughDataError("no held-out events to stop by: hold some out or say how many epochs")
    if not (chosen.lengths > held).any():
        raise NotEnoughDataError("no events to train the retriever on: load more days")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = _build(chosen.keep(chosen.places >= np.repeat(held, chosen.lengths)), items, settings, warm)
        run = Run(model, Events(chosen, profile, items.text.shape[1]), held, items, epochs, progress)
        run.fit(checkpoint)
    return model, run.report


def shape(settings: RetrieverSettings) -> dict[str, object]:
    """What two networks must have in common for one to go on from the other's weights."""
    return settings.model_dump(include={"size", "layers", "heads", "window", "block", "relative", "target_gap"})


def _build(histories: Histories, items: ItemSide, settings: RetrieverSettings, warm: Retriever | None) -> Retriever:
    """A new retriever, its biases the items' popularity; what `warm` has learned is taken over.

    The ids of items that are new to `warm` start from nothing, as they were scored before.
    """
    nodes = 0 if items.graph is None else items.graph.shape[1]
    types = int(histories.types.max(initial=0)) + 1
    model = Retriever(settings, len(items), items.text.shape[1], nodes, types).to(device())
    counts = np.bincount(histories.items, minlength=len(items)).astype(np.float32)
    log = torch.from_numpy(np.log1p(counts))
    with torch.no_grad():
        model.tower.bias.copy_(log - log.mean())
        if warm is not None:
            _take_over(model, warm)
    return model


def _take_over(model: Retriever, warm: Retriever) -> None:
    """Copy the weights of `warm` into the first rows of the like-named ones."""
    model.tower.ids[len(warm.tower.ids) :] = 0
    model.tower.bias[len(warm.tower.bias) :] = 0
    known = dict(warm.named_parameters())
    for name, weight in model.named_parameters():
        if name in known and known[name].shape[1:] == weight.shape[1:]:
            rows = min(len(weight), len(known[name]))
            weight[:rows] = known[name][:rows].to(weight.device)
