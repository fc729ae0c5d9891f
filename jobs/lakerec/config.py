"""The YAML of a deployment as checked models: a fault names file, line, key and what was expected."""

from __future__ import annotations

import difflib
import hashlib
import math
import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

import sqlglot
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from sqlglot import exp
from sqlglot.errors import SqlglotError

from lakerec.errors import ConfigError

EVENT_COLUMNS = ("event_id", "user_id", "item_id", "event_type", "event_time", "value", "position", "query", "list_id")
ITEM_ENTITY = "item_entity"  # the relation of silver.kg that ties an item to its entity
REQUIRED_EVENT_COLUMNS = ("event_id", "user_id", "item_id", "event_type", "event_time")


class Model(BaseModel):
    """A section of the YAML: unknown keys are refused, values are not changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def referenced_columns(expression: str) -> list[str]:
    """The source columns that a Spark SQL expression reads, in order of appearance; raises ValueError."""
    try:
        tree = sqlglot.parse_one(expression, dialect="spark")
    except SqlglotError as error:
        place = str(error).splitlines()[0]
        raise ValueError(f"not a Spark SQL expression: {expression!r} ({place})") from error
    if tree.find(exp.Select, exp.Subquery, exp.Command, exp.DDL):
        raise ValueError(f"a column expression is expected, not a statement: {expression!r}")
    names = (column.name for column in tree.find_all(exp.Column, bfs=False))
    return list(dict.fromkeys(names))


class Source(Model):
    """One kind of file: where its files lie, how they are read and what becomes of their columns.

    `missing`: what a day without a file, or with an empty one, means. `empty`: no rows, and an error where the day has
    landed some before, for files are archived more often than withdrawn; `remove`: no rows any more; `error`. Of event
    files without `{date}` it is a day without a row, and `error` means what `empty` does.
    `max_bytes`: what one file, CSV or JSON, may hold once it is decompressed.
    """

    path: str | None = None
    from_: Literal["events"] | None = Field(default=None, alias="from")
    format: Literal["csv", "json", "parquet", "delta"] = "csv"
    mode: Literal["snapshot", "delta"] = "delta"
    missing: Literal["empty", "remove", "error"] = "empty"
    options: dict[str, str] = Field(default_factory=dict)
    max_bytes: int = Field(default=16 * 2**30, ge=1)
    optional: list[str] = Field(default_factory=list)
    columns: dict[str, str]

    @field_validator("columns", mode="before")
    @classmethod
    def _as_text(cls, columns: Any) -> Any:
        """YAML reads `value: 1` as a number; a mapping's value is always an expression."""
        return {k: str(v) for k, v in columns.items()} if isinstance(columns, dict) else columns

    @field_validator("columns")
    @classmethod
    def _parses(cls, columns: dict[str, str]) -> dict[str, str]:
        for key, expression in columns.items():
            try:
                referenced_columns(expression)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return columns

    @field_validator("options")
    @classmethod
    def _splits(cls, options: dict[str, str]) -> dict[str, str]:
        """Quotes and separators that Spark's reader of CSV takes."""
        if len(options.get("quote", "")) > 1:
            raise ValueError("quote: one character is expected, or none where the files have no quotes")
        if not re.fullmatch(r"(\\t|[^\\])+", options.get("sep", ",")):
            raise ValueError("sep: one or several characters are expected, and no backslash but in \\t")
        return options

    @model_validator(mode="after")
    def _has_a_place(self) -> Source:
        if (self.path is None) == (self.from_ is None):
            raise ValueError("exactly one of 'path' and 'from' is expected")
        return self

    @property
    def dated(self) -> bool:
        """Whether the path names a day, so that each day has files of its own."""
        return self.path is not None and "{date}" in self.path

    def expressions(self) -> dict[tuple[str, ...], str]:
        """Every expression over the files' columns, by its keys below the source."""
        return {("columns", name): expression for name, expression in self.columns.items()}

    def source_columns(self) -> list[str]:
        """Every column of the files that an expression reads."""
        found = (name for expression in self.expressions().values() for name in referenced_columns(expression))
        return list(dict.fromkeys(found))

    def readers(self, column: str) -> list[tuple[str, ...]]:
        """The keys whose expressions read a column of the files."""
        return [keys for keys, expression in self.expressions().items() if column in referenced_columns(expression)]

    def required_columns(self) -> list[str]:
        """The columns whose absence is a SourceError."""
        return [name for name in self.source_columns() if name not in self.optional]


def _need(source: Source | None, names: tuple[str, ...], key: str) -> None:
    missing = [name for name in names if source is not None and name not in source.columns]
    if missing:
        raise ValueError(f"{key}.columns: the mapping lacks {', '.join(missing)}")


class RowRule(Model):
    """A deployment's own row rule: rows for which `when` holds go to quarantine."""

    when: str
    severity: Literal["expected", "bad"] = "bad"

    @field_validator("when")
    @classmethod
    def _parses(cls, when: str) -> str:
        referenced_columns(when)
        return when


class EventSource(Source):
    """The clickstream: a mapping to the columns of silver.events, and row rules of its own."""

    rules: dict[str, RowRule] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> EventSource:
        _need(self, REQUIRED_EVENT_COLUMNS, "events")
        unknown = [name for name in self.columns if name not in EVENT_COLUMNS]
        if unknown:
            raise ValueError(f"events.columns: unknown {', '.join(unknown)}; known: {', '.join(EVENT_COLUMNS)}")
        if self.from_:
            raise ValueError("events need a path")
        return self

    def expressions(self) -> dict[tuple[str, ...], str]:
        """Those of the mapping and those of the row rules."""
        return super().expressions() | {("rules", name, "when"): rule.when for name, rule in self.rules.items()}


class Sources(Model):
    """The files a deployment brings."""

    events: EventSource
    items: Source | None = None
    users: Source | None = None
    kg: Source | None = None
    kg_links: Source | None = None

    @model_validator(mode="after")
    def _complete(self) -> Sources:
        for name in ("users", "kg", "kg_links"):
            if (source := getattr(self, name)) is not None and source.from_:
                raise ValueError(f"{name}.from: only items can be read off the events; name a path")
        _need(self.items, ("item_id", "title", "text"), "items")
        _need(self.users, ("user_id", "text"), "users")
        _need(self.kg, ("head", "relation", "tail"), "kg")
        _need(self.kg_links, ("item_id", "entity"), "kg_links")
        return self


class Gate(Model):
    """How much of an ingest day may be bad before the window fails."""

    max_bad: float = Field(default=0.2, ge=0, le=1)


class Sessions(Model):
    """A visit ends after so many minutes without an event (and at the end of the day)."""

    inactivity_minutes: int = Field(default=30, ge=1)


class Privacy(Model):
    """Pseudonyms: user ids become HMAC-SHA256 of the id under the key in this environment variable."""

    pseudonymise: bool = False
    key_env: str = "LAKEREC_USER_KEY"


class Sequence(Model):
    """The behaviour sequence: how many events it holds, of which types, and how they are told.

    Without `types` it holds every event type whose weight is not 0.
    """

    length: int = Field(default=50, ge=1, le=1000)
    types: list[str] = Field(default_factory=list)
    verbs: dict[str, str] = Field(
        default_factory=lambda: {
            "view": "viewed",
            "cart": "added to cart",
            "purchase": "bought",
            "return": "returned",
            "rate": "watched",
            "search": "searched for",
        }
    )


class Candidates(Model):
    """Which generators nominate items for a user (all of them without a list), and how many are scored.

    `per_user` of the final ranker's best go to the language model; `popular_days` is the window of the popular list.
    Where more than `exact_items` may be recommended, the nearest vectors are looked for in an inverted file; up to
    20,000 items every score is written down, and nothing is looked for.
    """

    per_user: int = Field(default=20, ge=1, le=1000)
    popular_days: int = Field(default=30, ge=1)
    generators: dict[str, dict[str, int | float]] = Field(default_factory=dict)
    exact_items: int = Field(default=1_000_000, ge=1)


class Policy(Model):
    """What is taken out of a list after scoring, and how long a list is."""

    k: int = Field(default=10, ge=1)
    filter_types: list[str] = Field(default_factory=list)


class Training(Model):
    """Fine-tuning of the language model on slates.

    freeze: head: the model stays as it is and reads once; lora, full: adapters, or all of it, learn; head+lora,
    head+full: the head first, then from its best weights the rest (Kumar et al. 2022, "Fine-tuning can distort
    pretrained features and underperform out-of-distribution").
    loss: bce over candidates, softmax over each slate, or distill: `distill_weight` of the distance to a teacher's
    softmax at `distill_temperature`, the rest softmax; teacher: `ranker`, or the folder or version of another artefact;
    max_minutes: what all epochs may take together, the unfinished last one's validation on top; unset there is no end;
    accumulate: steps an update; stop: the curve of the validation slates that decides, loss or NDCG@10; processes: so
    many of this machine share each step, one a GPU (with `freeze: head` the language model reads once, and one does).
    `targets` are the event types that count as a choice; without them every type with a positive weight. `impressions`
    are those that say that an item was shown, and no more: what was shown and not chosen may teach the language model.
    `slices` are attributes of users (in sources.users.columns) whose values get figures of their own in the evaluation.
    """

    freeze: Literal["head", "lora", "full", "head+lora", "head+full"] = "lora"
    max_slates: int = Field(default=1500, ge=1)
    valid_slates: int = Field(default=1000, ge=1)
    max_examples: int = Field(default=20000, ge=1)
    epochs: int = Field(default=3, ge=1)
    patience: int = Field(default=1, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    token_budget: int = Field(default=2048, ge=64)
    loss: Literal["bce", "softmax", "distill"] = "bce"
    distill_weight: float = Field(default=0.5, ge=0, le=1)
    distill_temperature: float = Field(default=2.0, gt=0)
    teacher: str = "ranker"
    accumulate: int = Field(default=1, ge=1)
    processes: int = Field(default=1, ge=1)
    stop: Literal["loss", "ndcg"] = "loss"
    lora_rank: int = Field(default=8, ge=1)
    seed: int = 17
    cuts: int = Field(default=3, ge=1)
    horizon_days: int = Field(default=7, ge=1)
    targets: list[str] = Field(default_factory=list)
    impressions: list[str] = Field(default_factory=lambda: ["impression"])
    slices: list[str] = Field(default_factory=list)


class Ranker(Model):
    """The final ranker: how many candidates of each generator it reads, and how it learns from them."""

    depth: int = Field(default=100, ge=1, le=10_000)
    negatives: int = Field(default=60, ge=1)
    folds: int = Field(default=4, ge=2)
    rounds: int = Field(default=400, ge=1)
    patience: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)
    leaves: int = Field(default=15, ge=2)
    min_leaf: int = Field(default=50, ge=1)
    seed: int = 17


class Retriever(Model):
    """The sequence model among the candidate sources: its shape and training.

    size, layers, heads: of the network; window: past events it reads; relative: attention also by distance in places
    and in time; target_gap: the time to the event to be predicted is known (never in production); id_dropout: share
    of items that are read without their id, so that new ones work from text and graph; ema: decay of the averaged
    weights; sampled: 0 for the softmax over the whole catalogue, n for n sampled items with logQ correction;
    max_minutes: what one of its trainings may take; members: so many networks, trained from different seeds, whose
    log-probabilities are averaged (deep ensembles, Lakshminarayanan et al. 2017).
    """

    enabled: bool = True
    size: int = Field(default=64, ge=2)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    window: int = Field(default=100, ge=1)
    block: Literal["transformer", "hstu"] = "hstu"
    relative: bool = True
    target_gap: bool = False
    dropout: float = Field(default=0.3, ge=0, lt=1)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    epochs: int = Field(default=60, ge=1)
    patience: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    batch: int = Field(default=16, ge=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    sampled: int = Field(default=0, ge=0)
    max_minutes: float = Field(default=2.0, gt=0)
    members: int = Field(default=1, ge=1)
    seed: int = 17


class Scorer(Model):
    """The models that score: the retriever, the final ranker, and the language model that may correct it.

    `language_model`: auto uses it where it ranks better than the ranker alone, beyond chance, on validation, and surely
    worse in no slice of `promotion.min_users` people.
    `tune`: choose each generator's settings on the first cut, not the defaults. `arithmetic` of the language model's
    scoring: auto (bf16 where the machine multiplies it fast), float32, or int8; a cheaper one that ranks the validation
    slates otherwise than float32 is refused with its figures. `history` and `candidate`: text, or vectors: each past
    event (the last `history_tokens`) or each candidate is one token, its item's text vector.
    """

    retriever: Retriever = Field(default_factory=Retriever)
    ranker: Ranker = Field(default_factory=Ranker)
    language_model: Literal["auto", "always", "never"] = "auto"
    tune: bool = False
    arithmetic: Literal["auto", "float32", "int8"] = "auto"
    model: str = "minilm-l6"
    history_tokens: int = Field(default=160, ge=8)
    candidate_tokens: int = Field(default=16, ge=2)
    history: Literal["text", "vectors"] = "text"
    candidate: Literal["text", "vectors"] = "text"
    training: Training = Field(default_factory=Training)

    def decisive(self) -> str:
        """All of this that decides a model, as JSON: what is set, and several processes train what one trains."""
        return self.model_dump_json(exclude={"training": {"processes"}}, exclude_none=True)

    @model_validator(mode="after")
    def _vectors_are_learned(self) -> Scorer:
        if self.training.freeze.startswith("head") and "vectors" in (self.history, self.candidate):
            raise ValueError("a frozen language model cannot learn to read vectors: training.freeze lora or full")
        return self


class Promotion(Model):
    """What a challenger may lose against the champion and still take its place, by 95 % paired intervals.

    `tolerance`: NDCG@10, as a part of the champion's (of the best baseline's for a first model); `min_coverage`: the
    part of the champion's coverage it must keep; slices of fewer than `min_users` users are not judged, nor are they
    where the language model is.
    """

    tolerance: float = Field(default=0.05, ge=0, lt=1)
    min_coverage: float = Field(default=0.8, ge=0, le=1)
    max_ece_rise: float = Field(default=0.02, ge=0)
    min_users: int = Field(default=100, ge=1)


class Patterns(Model):
    """Behaviour patterns: clusters of the users' encoded sequences; the number of them is chosen from `ks`.

    `text_tokens`: about so many tokens of the recent end of a text are encoded; `max_users` take part in the fit.
    `cuts`: also as of each cut of the training that has none yet, so that the first night's ranker knows patterns.
    """

    enabled: bool = True
    ks: tuple[Annotated[int, Field(ge=2, le=100)], ...] = Field(default=(4, 8, 12), min_length=1)
    max_users: int = Field(default=2000, ge=2)
    text_tokens: int = Field(default=32, ge=4, le=254)
    cuts: bool = False
    seed: int = 17


class Spark(Model):
    """How a session is built: master, memory and any Spark property.

    reuse: Airflow's tasks of the lake share one driver, which stays warm between them (`make bench-day` has both ways).
    small_days: a day has some ten thousand events at most, and its expressions take longer to compile than to run: the
    steps of up to seven days have Spark interpret them (docs/performance.md).
    """

    master: str = "local[2]"
    driver_memory: str = "3g"
    fast_start: bool = True
    reuse: bool = False
    small_days: bool = False
    properties: dict[str, str] = Field(default_factory=dict)

    @field_validator("properties")
    @classmethod
    def _no_credentials(cls, properties: dict[str, str]) -> dict[str, str]:
        """Properties end in a file and in Spark's own pages."""
        for key in properties:
            if re.search(r"fs\.s3a\.(.+\.)?(access\.key|secret\.key|session\.token)$", key):
                raise ValueError(f"{key}: credentials of S3 come from the environment or the instance, not from a file")
        return properties


class Serving(Model):
    """Where lists are published: the libpq URI in this environment variable, else a PostgreSQL inside the lake."""

    uri_env: str = "LAKEREC_SERVING_URI"


class Freshness(Model):
    """When lists are fresh: at most so many days older than the day that ended, at least this share of the rows that
    the publication of an earlier day had, and events in one of the last `max_quiet_days` + 1 days. What has lists of
    less than this share of the users that are served is not published.
    """

    max_age_days: int = Field(default=0, ge=0)
    max_quiet_days: int = Field(default=0, ge=0)
    min_share: float = Field(default=0.5, ge=0, le=1)


class Alerts(Model):
    """Who hears of failed tasks and missed deadlines: e-mail by Airflow's connection smtp_default, a webhook by the
    Airflow connection of this name, whose host is the URL.
    """

    email: list[str] = Field(default_factory=list)
    webhook: str | None = None


class Airflow(Model):
    """How many minutes one try of an Airflow task may take, and of a task that trains; then its processes are ended."""

    task_minutes: float = Field(default=720, gt=0, le=100_000)
    training_minutes: float = Field(default=2880, gt=0, le=100_000)


class Lineage(Model):
    """Where OpenLineage events go: lines of a file, or an endpoint whose key is in this environment variable.

    spark: Spark's own listener tells, too, which column of a table was made of which.
    """

    file: str | None = None
    url: str | None = None
    key_env: str = "OPENLINEAGE_API_KEY"
    spark: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> Lineage:
        if self.file and self.url:
            raise ValueError("one of 'file' and 'url' is expected")
        if self.spark and not (self.file or self.url):
            raise ValueError("with 'spark' a 'file' or a 'url' is expected")
        if self.url and "@" in urlsplit(self.url).netloc:
            raise ValueError("a 'url' without user and password is expected: the variable of 'key_env' has the key")
        return self


class Lease(Model):
    """One writer per lake: how long to wait, and a PostgreSQL for lakes that are not a local folder."""

    wait_seconds: int = Field(default=600, ge=0)
    uri_env: str | None = None


class Maintenance(Model):
    """What the weekly upkeep keeps beside the newest version of each table, in days of the clock.

    versions_days: files of replaced versions (time travel, and the inputs that a training has pinned); log_days:
    commits in a table's log; models_days: models that no entry of ml.promotions names.
    """

    versions_days: float = Field(default=7, gt=0)
    log_days: int = Field(default=30, ge=1)
    models_days: int = Field(default=30, ge=1)

    @model_validator(mode="after")
    def _log_tells_of_every_version(self) -> Maintenance:
        if self.log_days < self.versions_days:
            raise ValueError("log_days must not be less than versions_days: a version is read by way of its commit")
        return self


# Spark's properties whose values anybody may see, unless their name says otherwise; and what is secret in a text.
PLAIN = re.compile(
    r"spark\.(sql|memory|shuffle|task|default|speculation|dynamicAllocation|databricks\.delta)\.|"
    r"spark\.(driver|executor)\.(memory|memoryOverhead|cores|instances)$|spark\.(local\.dir|cores\.max)$"
)
SECRET = re.compile(r"secret|password|passwd|token|credential|key|sas", re.IGNORECASE)
PASSWORD = re.compile(r"(?<=://)[^\s\"]*@|(?<=password=)[^&\s\"]+", re.IGNORECASE)
# The tables that may lose old days: nothing is rebuilt from them, and what is newest in them stays.
RETAINABLE = (
    "quarantine.events",
    "ml.sequences",
    "ml.behaviour_patterns",
    "ml.user_patterns",
    "ml.examples",
    "gold.recommendations",
)
DAY_MINUTES = 1440
TRAINED_ON = ("ml.sequences", "ml.behaviour_patterns", "ml.user_patterns")


class Config(Model):
    """A deployment; `files` is the folder of what is no table, needed where the lake is none on this machine's disk.

    Relative paths are those of `folder`, without it of the YAML's own. `retention` has the days that a table keeps; a
    table that it does not name keeps all.
    """

    lake: str
    files: str | None = None
    folder: str = "."
    timezone: str = "UTC"
    sources: Sources
    event_types: dict[str, float]
    late_days: int = Field(default=3, ge=0, le=60)
    gate: Gate = Field(default_factory=Gate)
    sessions: Sessions = Field(default_factory=Sessions)
    privacy: Privacy = Field(default_factory=Privacy)
    sequence: Sequence = Field(default_factory=Sequence)
    candidates: Candidates = Field(default_factory=Candidates)
    policy: Policy = Field(default_factory=Policy)
    scorer: Scorer = Field(default_factory=Scorer)
    promotion: Promotion = Field(default_factory=Promotion)
    patterns: Patterns = Field(default_factory=Patterns)
    spark: Spark = Field(default_factory=Spark)
    serving: Serving = Field(default_factory=Serving)
    lease: Lease = Field(default_factory=Lease)
    freshness: Freshness = Field(default_factory=Freshness)
    airflow: Airflow = Field(default_factory=Airflow)
    alerts: Alerts = Field(default_factory=Alerts)
    lineage: Lineage = Field(default_factory=Lineage)
    maintenance: Maintenance = Field(default_factory=Maintenance)
    retention: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: {"ml.examples": 90})

    _file: Path = PrivateAttr(default=Path("config.yaml"))
    _node: yaml.Node | None = PrivateAttr(default=None)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"unknown time zone {name!r}{_nearest(name, available_timezones())}")
        return name

    @field_validator("folder")
    @classmethod
    def _on_a_disk(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("a folder on a disk is expected; paths on an object store are written whole")
        return folder

    @field_validator("event_types")
    @classmethod
    def _some_types(cls, types: dict[str, float]) -> dict[str, float]:
        if not types:
            raise ValueError("at least one event type with its weight is expected, e.g. purchase: 5")
        return types

    @model_validator(mode="after")
    def _retains_what_is_needed(self) -> Config:
        training = self.scorer.training
        span = (training.cuts + 2) * training.horizon_days
        for name, days in self.retention.items():
            if name not in RETAINABLE:
                raise ValueError(f"retention: {name} keeps all its days; those that may go are {', '.join(RETAINABLE)}")
            if name in TRAINED_ON and days <= span:
                raise ValueError(f"retention: {name}: more than {span} days are expected, which a training looks back")
        return self

    @property
    def file(self) -> Path:
        """The YAML this configuration was read from."""
        return self._file

    def where(self, *keys: str) -> str:
        """A key of the YAML for people: file, line and the key with its sections."""
        return f"{self._file}, line {_line(self._node, list(keys))}: {'.'.join(keys)}"

    def check_impressions(self) -> None:
        """Raise ConfigError for an event type that would say both that an item was chosen and that it was not.

        But for the default: nobody has named it, and what is a target is passed over nowhere.
        """
        training = self.scorer.training
        if training.impressions == Training().impressions:
            return
        chosen = {*training.targets, *(name for name, weight in self.event_types.items() if weight > 0)}
        if both := [name for name in training.impressions if name in chosen]:
            where = self.where("scorer", "training", "impressions")
            raise ConfigError(
                f"{where}: {', '.join(both)} is a choice (in targets, or of a weight above 0 in event_types); expected "
                "are types that say that an item was shown, and no more, or []"
            )

    def check_upkeep(self) -> None:
        """Raise ConfigError where the upkeep could remove what a running training has pinned."""
        days, minutes = self.maintenance.versions_days, self.airflow.training_minutes
        if days * DAY_MINUTES < minutes:
            raise ConfigError(
                f"{self.where('maintenance', 'versions_days')}: {days:g} days are less than airflow.training_minutes "
                f"({minutes:g}), so that the upkeep could remove what a running training reads; expected are "
                f"versions_days of {math.ceil(minutes / DAY_MINUTES)} or more, or training_minutes of "
                f"{days * DAY_MINUTES:g} or less"
            )

    @property
    def zone(self) -> ZoneInfo:
        """The time zone that says what a day is."""
        return ZoneInfo(self.timezone)

    def resolve(self, path: str) -> str:
        """A path of the YAML, relative to the folder of its relative paths; a URI stays as it is."""
        if re.match(r"^[a-z][a-z0-9+.-]*://", path) or Path(path).is_absolute():
            return path
        return str((self._file.parent / self.folder / path).resolve())

    @property
    def on_s3(self) -> bool:
        """Whether the lake or a source is on S3."""
        places = [self.lake, *(source.path for _, source in self.sources if source)]
        return any(place.startswith("s3a://") for place in places if place)

    def local_folder(self, relative: str) -> Path:
        """A folder of models, Data Docs and the like: below `files`, else below the lake; ConfigError on no disk."""
        place = self.resolve(self.files) if self.files else self.lake
        if "://" in place:
            key = "files" if self.files else "lake"
            wanted = "set 'files' to a folder, on a cluster to one that all machines share"
            raise ConfigError(f"{self.where(key)}: {place} is no folder on a disk; {wanted}")
        return Path(place) / relative

    @property
    def told(self) -> str:
        """All settings as JSON, which is YAML as well, but for where the lake and its files are."""
        return self.model_dump_json(by_alias=True, exclude={"lake", "files", "folder"})

    @property
    def shown(self) -> str:
        """As `told`, without what may be secret: values of most Spark properties, users and passwords in URIs.

        With the folder of its relative paths, so that it reads the same files wherever it is kept.
        """
        known = self.spark.properties
        secret = {key: "(not shown)" for key in known if SECRET.search(key) or not PLAIN.match(key)}
        spark = self.spark.model_copy(update={"properties": known | secret})
        whole = self.model_copy(update={"spark": spark, "folder": self.resolve(".")})
        told = whole.model_dump_json(by_alias=True, exclude={"lake", "files"})
        return PASSWORD.sub(lambda found: "(not shown)" + "@" * found[0].endswith("@"), told)

    @property
    def slate_size(self) -> int:
        """How many of a user's candidates are scored, in training as in serving: a list has its k."""
        return max(self.candidates.per_user, self.policy.k)

    def decisive(self) -> str:
        """All that decides a model trained on a snapshot, as JSON: what scores, from which sources and events."""
        some = {"policy": {"filter_types"}, "promotion": {"min_users"}}
        named = set(Candidates.model_fields) - {"exact_items"}
        kept = self.model_dump_json(include={"candidates": named, "event_types": True, **some})
        return f"{self.scorer.decisive()}{kept}{self.slate_size}"

    def hash(self) -> str:
        """The first 12 hex digits of the SHA-256 of `told`."""
        return hashlib.sha256(self.told.encode()).hexdigest()[:12]


def load_config(file: Path, lake: str | None = None) -> Config:
    """Read and check a YAML; `lake` overrides its lake. Raises ConfigError naming file, line and key.

    Another lake than the YAML's has a folder of its own below `files`: its upkeep removes models that it never served.
    """
    node, raw = _read(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: a mapping of keys is expected at the top, e.g. 'lake: ./lake'")
    try:
        config = Config.model_validate({"lake": lake, **raw} if lake else raw)
    except ValidationError as error:
        raise ConfigError(_describe(file, node, error)) from None
    config._file, config._node = file.resolve(), node
    config.check_impressions()
    config.check_upkeep()
    own = _one_name(config.resolve(config.lake))
    place = _one_name(lake) if lake else own
    other = bool(config.files) and place != own
    files = f"{config.files}/_lakes/{hashlib.sha256(place.encode()).hexdigest()[:8]}" if other else config.files
    return config.model_copy(update={"lake": place, "files": files})


def _one_name(lake: str) -> str:
    """However a lake is spelled, the one name that its lease goes by: a folder without links, a URI as Hadoop reads it.

    Two runs that named one lake differently would both hold it.
    """
    if "://" not in lake or lake.startswith("file:///"):
        return str(Path(lake.removeprefix("file://")).resolve())
    scheme, place = lake.split("://", 1)
    host, _, path = place.partition("/")
    return f"{scheme}://{host}{posixpath.normpath('/' + path.lstrip('/'))}".rstrip("/")


def _read(file: Path) -> tuple[yaml.Node | None, Any]:
    """The YAML twice: as nodes, which know their lines, and as values."""
    try:
        text = file.read_text(encoding="utf-8")
        return yaml.compose(text), yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give a YAML with --config") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not YAML: {getattr(error, 'problem', error)}") from None


def _describe(file: Path, node: yaml.Node | None, error: ValidationError) -> str:
    faults = [_fault(file, node, detail) for detail in error.errors(include_url=False)]
    return "\n".join(faults)


def _fault(file: Path, node: yaml.Node | None, detail: Any) -> str:
    keys = [str(part) for part in detail["loc"]]
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        message = f"unknown key{_nearest(keys[-1], known)}"
    elif detail["type"] == "missing":
        message = "this key is missing"
    else:
        keys = _deeper(keys, message)
    return f"{file}, line {_line(node, keys)}: {'.'.join(keys) or 'the file'}: {message}"


def _deeper(keys: list[str], message: str) -> list[str]:
    """A mapping's own fault begins with the key of its column or option: point at that line."""
    match = re.match(r"^(\w+): ", message)
    return [*keys, match.group(1)] if match and keys and keys[-1] in ("columns", "options") else keys


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for part in location:
        field = getattr(model, "model_fields", {}).get("from_" if part == "from" else part)
        if field is None:  # a key of a mapping (a rule's name): its values are of the model found before
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return [f.alias or n for n, f in getattr(model, "model_fields", {}).items()]


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _line(node: yaml.Node | None, keys: list[str]) -> int:
    """The line (from 1) of the deepest of `keys` that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
