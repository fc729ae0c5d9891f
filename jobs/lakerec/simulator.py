"""A deterministic clickstream of a shop with known preferences and planted, counted dirt.

Every day draws from its own generator seeded by (seed, stream, day) and what users did is replayed from day
0, so a longer simulation of the same seed begins with the same bytes. Impressions follow the position-based
click model (Craswell et al., WSDM 2008; Chuklin, Markov, de Rijke, Click Models for Web Search, 2015, ch. 3):
P(view | rank) = P(examined | rank) P(attracted | user, item), with the examination rank ** -eta of Joachims,
Swaminathan and Schnabel (WSDM 2017).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lakerec.errors import UsageError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Planted dirt: share of a day's rows that have a user and an item and are no bot's; one kind a row.
DIRT = {
    "duplicates": 0.008,  # the row twice in its file
    "redelivered": 0.008,  # the row again in the next day's file
    "late": 0.010,  # only in the file of 1 or 2 days later: still good
    "too_late": 0.002,  # only in the file of 5 to 7 days later
    "future": 0.004,  # event_time 1 to 30 days ahead of its file
    "unparsable": 0.006,  # cut after three columns, or garbage
    "bad_time": 0.005,  # event_time 'not-a-time'
    "unknown_item": 0.007,  # an item that no catalogue names
}
BAD = ("too_late", "future", "unparsable", "bad_time", "unknown_item")  # together 2 % of all rows
NOBODY, FIRST_BOT = -1, -2  # in the column `user` of ROW; further bots count downwards
NO_USER_VISITS = 0.04  # share of visits without a user
BOTS = 1  # a day, and one more for each 10,000 users
BOT_IMPRESSIONS = (150, 300)
EMPTY_DAY = 3  # the fourth file has a header only; fixed, since a longer simulation must not move it

NEVER = 1_000_000  # a day that does not come
LIST_LENGTH = 8
EXAMINATION_ETA = 0.7
EXAMINATION = np.arange(1, LIST_LENGTH + 1, dtype=np.float64) ** -EXAMINATION_ETA
MAX_VISITS = 6  # a day; with the pauses of _start_seconds two visits lie more than 30 minutes apart
OPENS, OPEN_SECONDS = 7 * 3600, 16 * 3600  # visits begin from 07:00 and end before midnight, UTC
FOLLOW = 0.6  # chance that the next step goes from item type A to the type that follows A
STAPLES = 3  # consumables a user buys again
DRIFTERS = 0.15  # share of users whose interests change

EVENT_COLUMNS = "event_id,user_id,item_id,event_type,event_time,position,price,query,user_agent,list_id"
EVENT_TYPES = ("impression", "view", "cart", "purchase", "search")
IMPRESSION, VIEW, CART, PURCHASE, SEARCH = range(5)
ROW = np.dtype([("kind", "i1"), ("user", "i4"), ("item", "i4"), ("second", "i4"), ("position", "i2"), ("visit", "i4")])
BOT_AGENT = "Mozilla/5.0 (compatible; Examplebot/2.1; +http://bot.example)"
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) Safari/605.1",
    "Mozilla/5.0 (Linux; Android 14) Chrome/126.0 Mobile",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5) Mobile/15E148",
)


class ItemType(NamedTuple):
    """A kind of article; `interval` is the days until it is bought again, 0 for what lasts."""

    category: str
    noun: str
    materials: str
    use: str
    interval: int


# Within a category each type is followed by the next one, the last by the first.
VOCABULARY: dict[str, tuple[tuple[str, str, str, int], ...]] = {
    "toys": (
        ("toy train", "wooden tin plastic", "runs through the living room on any floor", 0),
        ("track set", "wooden tin plastic", "adds bends and a bridge to the railway", 0),
        ("station house", "wooden tin cardboard", "gives the railway a place to stop", 0),
        ("building blocks", "wooden plastic cotton", "stack into towers and fall with a clatter", 0),
        ("jigsaw puzzle", "wooden cardboard recycled", "fills a rainy afternoon", 0),
    ),
    "kitchen": (
        ("coffee maker", "steel glass ceramic", "brews four cups in the morning", 0),
        ("coffee beans", "organic roasted decaffeinated", "taste of chocolate and hazelnut", 3),
        ("mug", "ceramic steel glass", "keeps a hot drink warm", 0),
        ("teapot", "ceramic steel glass", "pours without dripping", 0),
        ("loose leaf tea", "organic smoked herbal", "makes a fragrant afternoon cup", 4),
    ),
    "garden": (
        ("planter", "ceramic wooden steel", "holds herbs and flowers on the balcony", 0),
        ("potting compost", "organic recycled mineral", "feeds young plants for weeks", 4),
        ("flower seeds", "organic wild hardy", "bloom from June to October", 3),
        ("watering can", "steel plastic tin", "reaches the back row of the bed", 0),
        ("hand trowel", "steel wooden bamboo", "digs and plants in heavy soil", 0),
    ),
    "books": (
        ("detective novel", "hardback paperback illustrated", "keeps its reader awake all night", 0),
        ("crime anthology", "hardback paperback illustrated", "collects twelve short mysteries", 0),
        ("travel guide", "paperback illustrated recycled", "leads through old towns on foot", 0),
        ("cookbook", "hardback illustrated recycled", "explains eighty recipes step by step", 0),
        ("bedtime story", "hardback illustrated cardboard", "is read aloud in ten minutes", 0),
    ),
    "sports": (
        ("yoga mat", "rubber cotton recycled", "does not slip during exercise", 0),
        ("foam roller", "rubber wooden recycled", "loosens tired muscles after training", 0),
        ("water bottle", "steel glass plastic", "stays tight in any bag", 0),
        ("running vest", "cotton bamboo recycled", "dries fast on long runs", 0),
        ("energy bars", "organic nutty fruity", "give strength on the second half of the run", 2),
    ),
    "pets": (
        ("dog bed", "cotton wooden recycled", "is soft and easy to wash", 0),
        ("dog lead", "leather cotton recycled", "is light in the hand on long walks", 0),
        ("chew toy", "rubber cotton wooden", "survives strong teeth", 0),
        ("dog biscuits", "organic meaty herbal", "reward a good dog", 3),
        ("food bowl", "steel ceramic bamboo", "stands firm while the dog eats", 0),
    ),
    "beauty": (
        ("soap dish", "ceramic wooden bamboo", "lets the soap dry between uses", 0),
        ("bath salts", "organic herbal mineral", "turn a bath into an evening off", 5),
        ("hand cream", "organic herbal fruity", "cares for dry skin in winter", 4),
        ("hair brush", "wooden bamboo plastic", "is gentle to long hair", 0),
        ("vanity mirror", "steel wooden bamboo", "shows the face in clear light", 0),
    ),
    "stationery": (
        ("notebook", "leather recycled hardback", "lies flat when open", 0),
        ("fountain pen", "steel wooden brass", "writes smoothly on any paper", 0),
        ("ink cartridges", "plastic recycled mineral", "fit most fountain pens", 4),
        ("desk tray", "wooden leather bamboo", "keeps letters and bills in order", 0),
        ("letter opener", "brass steel wooden", "opens the post with a clean cut", 0),
    ),
}
TYPES = tuple(ItemType(category, *row) for category, rows in VOCABULARY.items() for row in rows)
INTERESTS = {
    "toys": "toys and play",
    "kitchen": "coffee, tea and the kitchen",
    "garden": "gardening",
    "books": "reading",
    "sports": "running and yoga",
    "pets": "dogs",
    "beauty": "bath and skin care",
    "stationery": "writing by hand",
}
CATEGORIES = tuple(INTERESTS)
MATERIALS = tuple(sorted({word for t in TYPES for word in t.materials.split()}))
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "grey")
AUDIENCES = ("children", "families", "students", "beginners", "professionals")
BRANDS = (
    *("Acorn", "Birchwood", "Copperleaf", "Daybreak", "Elmstone", "Fernhill"),
    *("Goldfinch", "Harbour", "Ivyline", "Juniper", "Kestrel", "Larkspur"),
)
CITIES = ("Leeds", "Bristol", "Cardiff", "Glasgow", "Norwich", "York", "Exeter", "Belfast")
GENDERS = ("female", "male", "")

PER_CATEGORY = len(TYPES) // len(CATEGORIES)  # types of a category lie side by side
TYPE_CATEGORY = np.array([CATEGORIES.index(t.category) for t in TYPES])
INTERVAL = np.array([t.interval for t in TYPES])
# Shape (types, 3).
TYPE_MATERIALS = np.array([[MATERIALS.index(word) for word in t.materials.split()] for t in TYPES])
FOLLOWS = TYPE_CATEGORY * PER_CATEGORY + (np.arange(len(TYPES)) + 1) % PER_CATEGORY


@dataclass
class DayCounts:
    """What one day's event file holds: rows in all, and rows of each planted kind (disjoint)."""

    rows: int = 0
    duplicates: int = 0
    redelivered: int = 0
    late: int = 0
    too_late: int = 0
    future: int = 0
    unparsable: int = 0
    bad_time: int = 0
    unknown_item: int = 0
    no_user: int = 0
    bot: int = 0

    @property
    def repeated(self) -> int:
        """Rows whose event is already known from an earlier row or file."""
        return self.duplicates + self.redelivered

    @property
    def bad(self) -> int:
        """Rows to quarantine that count against a gate."""
        return sum(getattr(self, kind) for kind in BAD)

    @property
    def quarantined(self) -> int:
        """Rows to quarantine under a late_days of 2 to 4: bad ones, those without a user, those of bots."""
        return self.bad + self.no_user + self.bot

    @property
    def written(self) -> int:
        """Rows that reach the table."""
        return self.rows - self.repeated - self.quarantined


@dataclass(frozen=True)
class SimulationSummary:
    """The planted counts by day of the file."""

    out: Path
    days: dict[date, DayCounts]

    @property
    def total(self) -> DayCounts:
        """The counts summed over all days."""
        return DayCounts(**{f.name: sum(getattr(d, f.name) for d in self.days.values()) for f in fields(DayCounts)})


@dataclass(frozen=True)
class Catalogue:
    """Attributes by item, each (items,): indexes into the vocabulary, and the days of their changes."""

    type: Ints
    material: Ints
    colour: Ints
    audience: Ints
    brand: Ints
    price: Floats
    weight: Ints
    launch: Ints
    retire: Ints
    corrected: Ints

    def on_sale(self, day: int) -> Mask:
        """Which items are in the catalogue of that day."""
        return (self.launch <= day) & (day < self.retire)

    def changes(self, day: int) -> bool:
        """Whether the catalogue of that day differs from the day before."""
        return day == 0 or any(bool((days == day).any()) for days in (self.launch, self.retire, self.corrected))


@dataclass(frozen=True)
class People:
    """Attributes by user, each (users,); the mixtures before and after the drift (users, categories)."""

    signup: Ints
    drift: Ints
    move: Ints
    activity: Floats
    before: Floats
    after: Floats
    audience: Ints
    material: Ints
    age: Ints
    gender: Ints
    city: Ints
    new_city: Ints

    def mixture(self, day: int) -> Floats:
        """The interest of each user in each category on that day."""
        return np.where((self.drift <= day)[:, None], self.after, self.before)

    def changed(self, day: int) -> Ints:
        """The users that sign up or change on that day."""
        changes = (self.drift == day) | (self.move == day)
        return np.flatnonzero((self.signup == day) | (changes & (self.signup < day)))


@dataclass
class Memory:
    """What users did so far: the type seen last (-1 for none), staples, the day each is due, what they own.

    `owned` holds user * items + item of every durable article bought.
    """

    last_type: Ints
    staple: Ints
    due: Ints
    owned: Ints

    @classmethod
    def of(cls, users: int) -> Memory:
        """The memory of users that have done nothing."""
        return cls(
            np.full(users, -1),
            np.full((users, STAPLES), -1),
            np.full((users, STAPLES), NEVER),
            np.empty(0, np.int64),
        )


def simulate(out: Path, start: date, days: int, users: int, items: int, seed: int) -> SimulationSummary:
    """Write events, items, users, the knowledge graph and truth.json below `out`; return what was planted.

    Raises UsageError for sizes too small and for an `out` that holds another simulation.
    """
    _check(days, users, items, seed)
    catalogue, people = _catalogue(items, seed), _people(users, seed)
    _write_truth(out, start, seed, catalogue, people)
    _write_graph(out / "kg", catalogue)
    for day in range(days):
        _write_catalogue(out / "items", start, day, catalogue)
        _write_users(out / "users", start, day, people)
    return SimulationSummary(out, _write_events(out / "events", start, days, seed, catalogue, people))


def _check(days: int, users: int, items: int, seed: int) -> None:
    least = {"days": (days, 1), "users": (users, 1), "items": (items, 20), "seed": (seed, 0)}
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise UsageError(f"simulate: {name} is {value}; give at least {minimum}")


def _rng(seed: int, stream: int, day: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, stream, day])


# --- the planted world --------------------------------------------------------------------------------------


def _catalogue(items: int, seed: int) -> Catalogue:
    rng = _rng(seed, 1)
    launch, retire, corrected = _item_days(items, rng)
    type_ = rng.permutation(np.arange(items) % len(TYPES))
    return Catalogue(
        type=type_,
        material=TYPE_MATERIALS[type_, rng.integers(3, size=items)],
        colour=rng.integers(len(COLOURS), size=items),
        audience=rng.integers(len(AUDIENCES), size=items),
        brand=rng.integers(len(BRANDS), size=items),
        price=np.exp(rng.normal(2.7, 0.6, items)),
        # Zipf's law with exponent 0.9; whole numbers keep the sums exact.
        weight=(1e6 / (1 + rng.permutation(items)) ** 0.9).astype(np.int64),
        launch=launch,
        retire=retire,
        corrected=corrected,
    )


def _item_days(items: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Days of launch, retirement and title correction: disjoint 8 %, 2 % and 2 % of the items."""
    launch, retire, corrected = np.zeros(items, np.int64), np.full(items, NEVER), np.full(items, NEVER)
    new, old, wrong, _ = np.split(
        rng.permutation(items), np.cumsum([items * 8 // 100, items // 50 + 1, items // 50 + 1])
    )
    launch[new] = 2 * rng.integers(1, 6, len(new))
    retire[old] = rng.integers(4, 13, len(old))
    corrected[wrong] = rng.integers(2, 10, len(wrong))
    return launch, retire, corrected


def _people(users: int, seed: int) -> People:
    rng = _rng(seed, 2)
    signup = np.where(rng.random(users) < 0.9, 0, rng.integers(1, 11, users))
    city = rng.integers(len(CITIES), size=users)
    before = _mixtures(users, rng)
    liked_type = before.argmax(axis=1) * PER_CATEGORY + rng.integers(PER_CATEGORY, size=users)
    return People(
        signup=signup,
        drift=np.where(rng.random(users) < DRIFTERS, signup + rng.integers(4, 11, users), NEVER),
        move=np.where(rng.random(users) < 0.03, signup + rng.integers(1, 15, users), NEVER),
        activity=np.exp(rng.normal(-0.8, 1.1, users)),  # visits a day: mean 0.82, median 0.45
        before=before,
        after=np.roll(before, len(CATEGORIES) // 2, axis=1),  # another heaviest category
        audience=rng.integers(len(AUDIENCES), size=users),
        material=TYPE_MATERIALS[liked_type, rng.integers(3, size=users)],
        age=rng.integers(18, 80, users),
        gender=rng.integers(len(GENDERS), size=users),
        city=city,
        new_city=(city + rng.integers(1, len(CITIES), users)) % len(CITIES),
    )


def _mixtures(users: int, rng: np.random.Generator) -> Floats:
    """Weights over 2 or 3 categories for each user, the first the heaviest; rows sum to 1."""
    chosen = rng.random((users, len(CATEGORIES))).argsort(axis=1)[:, :3]
    shares = np.array([0.6, 0.3, 0.1]) * np.column_stack([np.ones((users, 2)), rng.random(users) < 0.5])
    mixture = np.zeros((users, len(CATEGORIES)))
    np.put_along_axis(mixture, chosen, shares / shares.sum(axis=1, keepdims=True), axis=1)
    return mixture


# --- one day of behaviour -----------------------------------------------------------------------------------


class _Shelf:
    """The items on sale on one day, drawn by popularity within a range of types."""

    def __init__(self, catalogue: Catalogue, day: int) -> None:
        self.order = catalogue.type.argsort(kind="stable")
        weight = np.where(catalogue.on_sale(day), catalogue.weight, 0)[self.order]
        self.mass = np.concatenate([[0], weight.cumsum()])
        self.first = np.searchsorted(catalogue.type[self.order], np.arange(len(TYPES) + 1))

    def draw(self, low: Ints, high: Ints, rng: np.random.Generator) -> Ints:
        """An item of a type in [low, high) for each pair; of any type where none is on sale."""
        lower, upper = self.mass[self.first[low]], self.mass[self.first[high]]
        empty = lower == upper
        point = rng.integers(np.where(empty, 0, lower), np.where(empty, self.mass[-1], upper))
        return self.order[np.searchsorted(self.mass, point, side="right") - 1]


class _Day:
    """One day's visits; every method appends rows and updates the memory."""

    def __init__(self, day: int, seed: int, catalogue: Catalogue, people: People, memory: Memory) -> None:
        self.day, self.catalogue, self.people, self.memory = day, catalogue, people, memory
        self.rng = _rng(seed, 3, day)
        self.shelf = _Shelf(catalogue, day)
        self.on_sale = catalogue.on_sale(day)
        self.mixture = people.mixture(day)
        self.rows: list[NDArray[Any]] = []
        self.visits = 0

    def events(self) -> NDArray[Any]:
        """All rows of the day's users in order of time, dtype ROW."""
        present = self.people.signup <= self.day
        visits = np.minimum(self.rng.poisson(self.people.activity) * present, MAX_VISITS)
        for turn in range(int(visits.max())):
            users = np.flatnonzero(visits > turn)
            self.visit(users, _start_seconds(turn, visits[users], self.rng))
        self.bots(BOTS + len(visits) // 10_000)
        rows = np.concatenate(self.rows)
        nobody = self.rng.random(self.visits) < NO_USER_VISITS
        rows["user"][nobody[rows["visit"]] & (rows["user"] >= 0)] = NOBODY
        return rows[np.lexsort((rows["kind"], rows["visit"], rows["second"]))]

    def bots(self, count: int) -> None:
        """Lists that bots read from top to bottom, one item each second."""
        for bot in range(count):
            number = np.arange(self.rng.integers(*BOT_IMPRESSIONS))
            item = self.rng.choice(np.flatnonzero(self.on_sale), len(number))
            second = self.rng.integers(0, 23 * 3600) + number
            page, position = np.divmod(number, LIST_LENGTH)
            bots = np.full(len(number), FIRST_BOT - bot)
            self.add(IMPRESSION, bots, item, second, self.visits + page, position + 1)
            self.visits += int(page[-1]) + 1

    def visit(self, users: Ints, start: Ints) -> None:
        """One visit of each user: a list, one to three steps of their own, the staples that are due."""
        visit = self.visits + np.arange(len(users))
        self.visits += len(users)
        self.look_at_list(users, start, visit)
        steps = self.rng.integers(1, 4, len(users))
        for step in range(3):
            go = steps > step
            self.take_step(users[go], start[go] + 200 + 150 * step, visit[go])
        self.buy_staples(users, start + 660, visit)

    def look_at_list(self, users: Ints, start: Ints, visit: Ints) -> None:
        """A list of up to LIST_LENGTH distinct items; those examined and found attractive are viewed."""
        grid = np.repeat(users, LIST_LENGTH)
        item = self.offer(grid).reshape(-1, LIST_LENGTH)
        same = item[:, :, None] == item[:, None, :]
        shown = ~np.tril(same, -1).any(axis=2)
        position = shown.cumsum(axis=1)
        seen = EXAMINATION[position - 1] * self.attraction(grid, item.ravel()).reshape(item.shape)
        viewed = shown & (self.rng.random(item.shape) < seen)
        row, _ = np.nonzero(shown)
        self.add(IMPRESSION, users[row], item[shown], start[row], visit[row], position[shown])
        row, _ = np.nonzero(viewed)
        self.consider(users[row], item[viewed], start[row] + 20 * position[viewed], visit[row])

    def offer(self, users: Ints) -> Ints:
        """The shop's list: bestsellers, those of the user's categories, what goes with the last item."""
        category = self.category(users)
        low, high = category * PER_CATEGORY, (category + 1) * PER_CATEGORY
        source = self.rng.random(len(users))
        popular, next_type = source < 0.4, self.memory.last_type[users]
        low, high = np.where(popular, 0, low), np.where(popular, len(TYPES), high)
        related = (source > 0.8) & (next_type >= 0)
        low = np.where(related, FOLLOWS[next_type], low)
        return self.shelf.draw(low, np.where(related, low + 1, high), self.rng)

    def take_step(self, users: Ints, second: Ints, visit: Ints) -> None:
        """A view of the type that follows the last one, or of a category of theirs; 30 % search for it."""
        last = self.memory.last_type[users]
        follow = (last >= 0) & (self.rng.random(len(users)) < FOLLOW)
        type_ = self.category(users) * PER_CATEGORY + self.rng.integers(PER_CATEGORY, size=len(users))
        item = self.choose(users, np.where(follow, FOLLOWS[last], type_))
        search = self.rng.random(len(users)) < 0.3
        self.add(SEARCH, users[search], item[search], second[search] - 15, visit[search])
        self.consider(users, item, second, visit)

    def choose(self, users: Ints, type_: Ints) -> Ints:
        """An item of the type: of three drawn by popularity the one nearest to the user's taste."""
        drawn = np.stack([self.shelf.draw(type_, type_ + 1, self.rng) for _ in range(3)])
        liking = self.taste(users, drawn) + self.rng.random(drawn.shape)
        return np.take_along_axis(drawn, liking.argmax(axis=0)[None], axis=0)[0]

    def consider(self, users: Ints, item: Ints, second: Ints, visit: Ints) -> None:
        """A view, perhaps a cart, perhaps a purchase after that: more often for what the user likes."""
        self.add(VIEW, users, item, second, visit)
        self.memory.last_type[users] = self.catalogue.type[item]  # rows come in order of time: the last one stays
        cart = self.rng.random(len(users)) < 0.9 * self.attraction(users, item)
        buy = cart & (self.rng.random(len(users)) < 0.5) & ~np.isin(self.key(users, item), self.memory.owned)
        self.add(CART, users[cart], item[cart], second[cart] + 30, visit[cart])
        self.buy(users[buy], item[buy], second[buy] + 80, visit[buy])

    def buy(self, users: Ints, item: Ints, second: Ints, visit: Ints) -> None:
        """A purchase; a consumable becomes a staple that is due again, anything else is bought only once."""
        self.add(PURCHASE, users, item, second, visit)
        type_ = self.catalogue.type[item]
        again = INTERVAL[type_] > 0
        place = (users[again], type_[again] % STAPLES)
        self.memory.staple[place], self.memory.due[place] = item[again], self.day + INTERVAL[type_[again]]
        self.memory.owned = np.concatenate([self.memory.owned, self.key(users, item)[~again]])

    def key(self, users: Ints, item: Ints) -> Ints:
        """One number for each pair of user and item."""
        return users * len(self.on_sale) + item

    def buy_staples(self, users: Ints, second: Ints, visit: Ints) -> None:
        """The staples that are due, by way of view and cart."""
        row, slot = np.nonzero(self.memory.due[users] <= self.day)
        item = self.memory.staple[users[row], slot]
        row, item = row[self.on_sale[item]], item[self.on_sale[item]]
        self.add(VIEW, users[row], item, second[row], visit[row])
        self.add(CART, users[row], item, second[row] + 10, visit[row])
        self.buy(users[row], item, second[row] + 60, visit[row])

    def category(self, users: Ints) -> Ints:
        """A category for each user, drawn from today's mixture."""
        edges = self.mixture[users].cumsum(axis=1)[:, :-1]
        return (self.rng.random(len(users))[:, None] >= edges).sum(axis=1)

    def taste(self, users: Ints, item: Ints) -> Ints:
        """0, 1 or 2: how many of audience and material are the user's."""
        audience = self.catalogue.audience[item] == self.people.audience[users]
        return audience.astype(np.int64) + (self.catalogue.material[item] == self.people.material[users])

    def attraction(self, users: Ints, item: Ints) -> Floats:
        """The probability that an examined item is viewed."""
        type_, last = self.catalogue.type[item], self.memory.last_type[users]
        follows = (last >= 0) & (FOLLOWS[last] == type_)
        interest = self.mixture[users, TYPE_CATEGORY[type_]] > 0
        return 0.03 + interest * (0.17 + 0.1 * self.taste(users, item) + 0.2 * follows)

    def add(self, kind: int, users: Ints, item: Ints, second: Ints, visit: Ints, position: Ints | int = 0) -> None:
        """Append rows of one kind; position 0 means none."""
        rows = np.empty(len(users), ROW)
        for name, values in zip(ROW.names or (), (kind, users, item, second, position, visit), strict=True):
            rows[name] = values
        self.rows.append(rows)


def _start_seconds(turn: int, visits: Ints, rng: np.random.Generator) -> Ints:
    """The start of each user's visit number `turn`, at least 30 % of its share of the day before the next."""
    return OPENS + ((turn + 0.7 * rng.random(len(visits))) / visits * OPEN_SECONDS).astype(np.int64)


# --- files of events and their dirt -------------------------------------------------------------------------


@dataclass
class _File:
    """The lines of one day's file, which of them may be spoilt, and the counts so far."""

    lines: list[str] = field(default_factory=list)
    spoilable: list[int] = field(default_factory=list)
    counts: DayCounts = field(default_factory=DayCounts)


Deliveries = defaultdict[int, list[tuple[str, str]]]  # day of the file -> (kind, line)


def _write_events(
    folder: Path, start: date, days: int, seed: int, catalogue: Catalogue, people: People
) -> dict[date, DayCounts]:
    memory, counts = Memory.of(len(people.signup)), {}
    pending: Deliveries = defaultdict(list)
    for day in range(days):
        today = start + timedelta(days=day)
        file = _File()
        if day != EMPTY_DAY:
            rows = _Day(day, seed, catalogue, people, memory).events()
            file = _render(rows, today, catalogue)
            _plant(file, day, _rng(seed, 4, day), pending)
        _write_lines(folder / f"{today}.csv.gz", [EVENT_COLUMNS, *file.lines])
        file.counts.rows = len(file.lines)
        counts[today] = file.counts
    return counts


def _render(rows: NDArray[Any], today: date, catalogue: Catalogue) -> _File:
    """The rows as CSV lines; searches are spared the dirt, since they name no item."""
    lines = [_line(number, row, today, catalogue) for number, row in enumerate(rows.tolist())]
    file = _File(lines, np.flatnonzero((rows["user"] >= 0) & (rows["kind"] != SEARCH)).tolist())
    file.counts.no_user = int((rows["user"] == NOBODY).sum())
    file.counts.bot = int((rows["user"] <= FIRST_BOT).sum())
    return file


def _line(number: int, row: tuple[int, ...], today: date, catalogue: Catalogue) -> str:
    kind, user, item, second, position, visit = row
    stamp = f"{today:%Y%m%d}"
    clock = f"{today} {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    agent = AGENTS[user % len(AGENTS)] if user > FIRST_BOT else BOT_AGENT
    who = f"{stamp}-{number:07d},{_user_id(user)}"
    if kind == SEARCH:
        return f"{who},,search,{clock},,,{_query(catalogue, item)},{agent},"
    place, served = (position, f"{stamp}-{visit:06d}") if kind == IMPRESSION else ("", "")
    price = f"{catalogue.price[item]:.2f}"
    return f"{who},{_item_id(item)},{EVENT_TYPES[kind]},{clock},{place},{price},,{agent},{served}"


def _user_id(user: int) -> str:
    if user == NOBODY:
        return ""
    return f"u{user:05d}" if user >= 0 else f"b{FIRST_BOT - user:05d}"


def _query(catalogue: Catalogue, item: int) -> str:
    """What a user types who wants this item: two thirds of them name the material or the audience as well."""
    noun = TYPES[catalogue.type[item]].noun
    material, audience = MATERIALS[catalogue.material[item]], AUDIENCES[catalogue.audience[item]]
    return (noun, f"{material} {noun}", f"{noun} for {audience}")[item % 3]


def _plant(file: _File, day: int, rng: np.random.Generator, pending: Deliveries) -> None:
    """Spoil, hold back and repeat rows at the rates of DIRT; add what earlier days held back."""
    picks = _picks(file.spoilable, rng)
    _repeat(file, picks["duplicates"])
    _send_again(file, day, picks["redelivered"], pending)
    for kind, spoil in SPOILERS.items():
        for number in picks[kind]:
            file.lines[number] = spoil(file.lines[number], int(rng.integers(30)))
        setattr(file.counts, kind, len(picks[kind]))
    _hold_back(file, day, picks, rng, pending)
    _deliver(file, pending.pop(day, []))


def _picks(spoilable: list[int], rng: np.random.Generator) -> dict[str, list[int]]:
    """For each kind of dirt its own rows."""
    counts = [round(rate * len(spoilable)) for rate in DIRT.values()]
    parts = np.split(rng.permutation(np.array(spoilable, dtype=np.int64)), np.cumsum(counts))
    return {kind: sorted(part.tolist()) for kind, part in zip(DIRT, parts, strict=False)}


def _repeat(file: _File, numbers: list[int]) -> None:
    """Exact duplicates at the end of the same file."""
    file.lines += [file.lines[number] for number in numbers]
    file.counts.duplicates = len(numbers)


def _send_again(file: _File, day: int, numbers: list[int], pending: Deliveries) -> None:
    """The same rows in the next day's file, unless that is the empty one."""
    if day + 1 != EMPTY_DAY:
        pending[day + 1] += [("redelivered", file.lines[number]) for number in numbers]


def _hold_back(
    file: _File, day: int, picks: dict[str, list[int]], rng: np.random.Generator, pending: Deliveries
) -> None:
    """Take late rows out of the file; a row whose day lies beyond the simulation never arrives."""
    for kind, shortest, longest in (("late", 1, 2), ("too_late", 5, 7)):
        for number in picks[kind]:
            lag = int(rng.integers(shortest, longest + 1))
            lag = 3 - lag if day + lag == EMPTY_DAY else lag  # 1 instead of 2, 2 instead of 1
            pending[day + lag].append((kind, file.lines[number]))
    held = {*picks["late"], *picks["too_late"]}
    file.lines = [line for number, line in enumerate(file.lines) if number not in held]


def _deliver(file: _File, arrivals: Iterable[tuple[str, str]]) -> None:
    for kind, line in arrivals:
        file.lines.append(line)
        setattr(file.counts, kind, getattr(file.counts, kind) + 1)


def _from_future(line: str, number: int) -> str:
    cells = line.split(",")
    day, clock = cells[4].split(" ")
    cells[4] = f"{date.fromisoformat(day) + timedelta(days=number + 1)} {clock}"
    return ",".join(cells)


def _unparsable(line: str, number: int) -> str:
    return f"#### buffer overrun at {number:#x} ####" if number % 2 else ",".join(line.split(",")[:3])


def _bad_time(line: str, _: int) -> str:
    cells = line.split(",")
    return ",".join([*cells[:4], "not-a-time", *cells[5:]])


def _unknown_item(line: str, number: int) -> str:
    cells = line.split(",")
    return ",".join([*cells[:2], f"x{number:05d}", *cells[3:]])


SPOILERS = {
    "future": _from_future,
    "unparsable": _unparsable,
    "bad_time": _bad_time,
    "unknown_item": _unknown_item,
}


# --- the other files ----------------------------------------------------------------------------------------


def _item_id(item: int) -> str:
    return f"i{item:05d}"


def _write_catalogue(folder: Path, start: date, day: int, catalogue: Catalogue) -> None:
    """The whole catalogue on each day on which it changes."""
    if not catalogue.changes(day):
        return
    rows = [_item_row(item, day, catalogue) for item in np.flatnonzero(catalogue.on_sale(day)).tolist()]
    _write_table(folder / f"{start + timedelta(days=day)}.csv.gz", "item_id,title,category,brand,price,text", rows)


def _item_row(item: int, day: int, catalogue: Catalogue) -> list[str]:
    type_ = TYPES[catalogue.type[item]]
    material, colour = MATERIALS[catalogue.material[item]], COLOURS[catalogue.colour[item]]
    audience, brand = AUDIENCES[catalogue.audience[item]], BRANDS[catalogue.brand[item]]
    title = f"{material.capitalize()} {type_.noun} for {audience}, {colour}"
    if day < catalogue.corrected[item] != NEVER:
        title = title.replace(" for ", " fro ")
    text = f"{material.capitalize()} {type_.noun} for {audience} by {brand}, in {colour}: {type_.use}."
    return [_item_id(item), title, type_.category, brand, f"{catalogue.price[item]:.2f}", text]


def _write_users(folder: Path, start: date, day: int, people: People) -> None:
    """The users that signed up or changed; no file on a day without."""
    mixture, rows = people.mixture(day), []
    for user in people.changed(day).tolist():
        city = (people.new_city if people.move[user] <= day else people.city)[user]
        age = people.age[user] if user % 20 else ""  # every twentieth user keeps it to themselves
        rows.append([_user_id(user), str(age), GENDERS[people.gender[user]], CITIES[city],
                     _profile(mixture[user], user, people)])  # fmt: skip
    if rows:
        _write_table(folder / f"{start + timedelta(days=day)}.csv.gz", "user_id,age,gender,city,profile", rows)


def _profile(mixture: Floats, user: int, people: People) -> str:
    first, second = (INTERESTS[CATEGORIES[c]] for c in mixture.argsort()[::-1][:2])
    material, audience = MATERIALS[people.material[user]], AUDIENCES[people.audience[user]]
    return f"Interested in {first}, also in {second}; likes {material} things for {audience}."


def _write_graph(folder: Path, catalogue: Catalogue) -> None:
    """Triples of every item's attributes and the hierarchy of categories, and the entity of each item."""
    triples = [[_entity("type", t.noun), "subcategory_of", _entity("category", t.category)] for t in TYPES]
    triples += [[_entity("category", c), "subcategory_of", "category/everything"] for c in CATEGORIES]
    links = [[_item_id(item), f"item/{_item_id(item)}"] for item in range(len(catalogue.type))]
    for item, (_, entity) in enumerate(links):
        triples += [
            [entity, "instance_of", _entity("type", TYPES[catalogue.type[item]].noun)],
            [entity, "has_brand", _entity("brand", BRANDS[catalogue.brand[item]])],
            [entity, "has_material", _entity("material", MATERIALS[catalogue.material[item]])],
            [entity, "for_audience", _entity("audience", AUDIENCES[catalogue.audience[item]])],
        ]
    _write_lines(folder / "triples.tsv.gz", ["head\trelation\ttail", *("\t".join(row) for row in triples)])
    _write_lines(folder / "links.tsv.gz", ["item_id\tentity", *("\t".join(row) for row in links)])


def _entity(kind: str, name: str) -> str:
    return f"{kind}/{name.lower().replace(' ', '_')}"


def _write_truth(out: Path, start: date, seed: int, catalogue: Catalogue, people: People) -> None:
    """The planted preferences; the same for any number of days, so other bytes mean another world."""
    truth = {
        "start": str(start),
        "seed": seed,
        "follows": {t.noun: TYPES[f].noun for t, f in zip(TYPES, FOLLOWS, strict=True)},
        "examination": EXAMINATION.round(4).tolist(),
        "dirt": DIRT,
        "items": {_item_id(i): _item_truth(i, catalogue) for i in range(len(catalogue.type))},
        "users": {_user_id(u): _user_truth(u, start, people) for u in range(len(people.signup))},
    }
    text, path = json.dumps(truth, indent=1), out / "truth.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"simulate: {out} holds another simulation (see {path}); choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _item_truth(item: int, catalogue: Catalogue) -> dict[str, Any]:
    type_ = TYPES[catalogue.type[item]]
    return {
        "type": type_.noun,
        "category": type_.category,
        "material": MATERIALS[catalogue.material[item]],
        "audience": AUDIENCES[catalogue.audience[item]],
        "interval": type_.interval,
    }


def _user_truth(user: int, start: date, people: People) -> dict[str, Any]:
    drifts = people.drift[user] != NEVER
    return {
        "activity": round(float(people.activity[user]), 4),
        "material": MATERIALS[people.material[user]],
        "audience": AUDIENCES[people.audience[user]],
        "categories": _shares(people.before[user]),
        "drift_date": str(start + timedelta(days=int(people.drift[user]))) if drifts else None,
        "categories_after": _shares(people.after[user]) if drifts else None,
    }


def _shares(mixture: Floats) -> dict[str, float]:
    return {CATEGORIES[c]: round(float(mixture[c]), 4) for c in np.flatnonzero(mixture).tolist()}


def _write_table(path: Path, header: str, rows: Iterable[list[str]]) -> None:
    """A CSV file whose cells are quoted where they need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write_lines(path, [header, *text.getvalue().splitlines()])


def _write_lines(path: Path, lines: list[str]) -> None:
    """A gzip file of lines, UTF-8; mtime 0 keeps its bytes the same at any hour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), compresslevel=6, mtime=0))
