"""Policies: a request and a memory in, a slate and its log-probabilities out. Knows nothing of logs, tokens or gRPC."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.artifact import Artifact
from models.cache import Readings
from models.content import FloatArray
from models.generate import WAYS, Generator, novelty
from models.inference import FrozenDecoder, LeafVectors
from models.trie import IntArray, Trie
from models.walk import Rule
from recsys.catalogue import Catalogue, Rows, Vocabulary
from recsys.features import Shelf, Wish, contexts, legal_of, ruling
from recsys.memory import View


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How slates are drawn: part of the policy, stamped on each Decision."""

    way: str = "slot"
    """`slot`: one item after another, each seeing those before it. `beam`: all at once, faster, from what the first
    slot sees; at temperatures near 0 the chances behind the first few are less than a float can say, and luck orders them."""
    temperature: float = 0.8
    floor: float = 0.005
    """Share of each slot that is spread evenly over all legal items."""
    novelty_bonus: float = 6.0
    """Added to the logit of an item of which nothing is known; falls with 1 / sqrt(1 + what is known of it)."""
    value_weight: float = 16.0
    """Added to each logit, times what the value head says: expected rewards choose beside what is usually taken."""

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"drawing.way is {self.way!r}; it must be one of {', '.join(WAYS)}")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"drawing.temperature is {self.temperature}; it must be 0.01..100")
        if not 0 <= self.floor <= 0.99:
            raise ValueError(f"drawing.floor is {self.floor}; it must be 0..0.99")
        if not 0 <= self.novelty_bonus <= 20:
            raise ValueError(f"drawing.novelty_bonus is {self.novelty_bonus}; it must be 0..20")
        if not 0 <= self.value_weight <= 100:
            raise ValueError(f"drawing.value_weight is {self.value_weight}; it must be 0..100")


KEPT_FROM, KEPT_BYTES = 256, 1 << 28
"""Rows of memory from which on keys and values of users are kept: fewer are read anew as fast. And the most room they take."""


@dataclass(frozen=True)
class Asked:
    """One request as a policy sees it."""

    user_id: str
    view: View
    context: Mapping[str, str]
    slate_size: int
    wish: Wish
    seed: int


@dataclass(frozen=True)
class Choice:
    """A slate, shorter than asked when too few items are legal or the policy knows fewer slots, and log π of each slot in nats."""

    item_ids: list[str]
    logprobs: list[float]


class Policy(Protocol):
    """What the engine needs of a policy."""

    @property
    def policy_version(self) -> int:
        """Which version acts; 0 when none was published."""

    @property
    def trained_through_ms(self) -> int:
        """Every event up to here is in what acts."""

    @property
    def drawing(self) -> DrawingConfig:
        """How it draws."""

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """Draw a slate for each. Deterministic given the request, its seed and the catalogue: what else is in the batch only rounds."""


class GenerativePolicy:
    """The decoder of one published version."""

    def __init__(self, artifact: Artifact, drawing: DrawingConfig) -> None:
        self.drawing = drawing
        self.policy_version = int(artifact.facts["policy_version"])
        self.trained_through_ms = int(artifact.facts["trained_through_ms"])
        trie = artifact.trie
        decoder = FrozenDecoder(artifact.decoder, LeafVectors.of(artifact.decoder, trie))
        num_rows = len(artifact.item_ids) + 1
        self._generator = Generator(decoder, trie, novelty(artifact.decoder, num_rows), artifact.followed.frozen(num_rows))
        self._shelf = Shelf(Vocabulary(artifact.item_ids), np.concatenate([[False], ~artifact.retired_N]), trie)
        config = artifact.decoder.config
        self._history, self._num_buckets, self._max_slots = config.rows_read, config.features, config.max_slots
        bytes_of_user = 2 * 2 * 4 * config.width * config.history  # keys and values, in arrays at most twice as long
        self._readings = Readings(decoder, KEPT_BYTES // bytes_of_user) if config.history >= KEPT_FROM else None

    @property
    def kept_share(self) -> float | None:
        """Share of the requests so far whose user's memory had not to be read anew; None where none is kept, or nobody asked."""
        return self._readings.num_gone_on / self._readings.num_asked if self._readings and self._readings.num_asked else None

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """See Policy."""
        vocabulary = self._shelf.vocabulary
        views = [one.view for one in asked]
        context = contexts(views, [one.context for one in asked], vocabulary, self._history, self._num_buckets)
        rulings = [ruling(one.wish, one.view, catalogue, self._shelf, vocabulary.num_rows) for one in asked]
        sizes_B = np.minimum([one.slate_size for one in asked], self._max_slots)
        uniform_BSU = _uniform([one.seed for one in asked], int(sizes_B.max()), self._generator.trie.levels + 1)
        legal, rule = legal_of(rulings, self._shelf.trie), _rule(self.drawing, len(asked))
        memory = self._readings.memory([one.user_id for one in asked], context) if self._readings else None
        slates = self._generator.draw(context, legal, rule, uniform_BSU, sizes_B, way=self.drawing.way, memory=memory)
        return [self._choice(*slate) for slate in zip(slates.item_BS, slates.logprob_BS, strict=True)]

    def with_drawing(self, drawing: DrawingConfig) -> "GenerativePolicy":
        """The same version, drawing in another way."""
        other = copy(self)
        other.drawing = drawing
        return other

    def _choice(self, item_S: IntArray, logprob_S: FloatArray) -> Choice:
        item_ids, kept_S = self._shelf.vocabulary.item_ids, item_S > 0
        return Choice([item_ids[row - 1] for row in item_S[kept_S].tolist()], logprob_S[kept_S].tolist())


class PlainItems:
    """What may be shown to a request by who knows items by their place in the catalogue only."""

    def __init__(self) -> None:
        self._catalogue = Catalogue()
        self._shelf = _plain_shelf(self._catalogue)

    def rows(self, asked: Asked, catalogue: Catalogue) -> Rows:
        """Catalogue rows (from 1) that are legal for this request, ascending."""
        shelf = self._shelf_of(catalogue)
        ruled = ruling(asked.wish, asked.view, catalogue, shelf, shelf.vocabulary.num_rows)
        allowed = np.arange(shelf.trie.num_items) if ruled.allow is None else ruled.allow
        return np.asarray(shelf.trie.item_of_leaf[np.setdiff1d(allowed, ruled.exclude)], np.int64)

    def _shelf_of(self, catalogue: Catalogue) -> Shelf:
        """Built anew only when the items are others: 20,000 of them take 20 ms."""
        if self._catalogue is not catalogue or self._shelf.trie.num_items != len(catalogue.item_ids):
            self._catalogue, self._shelf = catalogue, _plain_shelf(catalogue)
        return self._shelf


class UniformPolicy:
    """Every legal item alike: what answers before anything was published, and the `random` baseline."""

    policy_version = 0
    trained_through_ms = 0

    def __init__(self) -> None:
        self.drawing = DrawingConfig(temperature=1, floor=0, novelty_bonus=0, value_weight=0)
        self._items = PlainItems()

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """See Policy."""
        return [self._even(one, catalogue) for one in asked]

    def _even(self, asked: Asked, catalogue: Catalogue) -> Choice:
        rows = self._items.rows(asked, catalogue)
        size = min(asked.slate_size, len(rows))
        drawn = np.random.Generator(np.random.Philox(asked.seed)).permutation(rows)[:size].tolist()
        return Choice([catalogue.item_ids[row - 1] for row in drawn], [float(-np.log(len(rows) - slot)) for slot in range(size)])


def _plain_shelf(catalogue: Catalogue) -> Shelf:
    """All items, one leaf each in order of row; those retired go by each request's ruling."""
    size = len(catalogue.item_ids)
    trie = Trie.built(np.arange(size, dtype=np.int32)[:, None], np.zeros(size, bool))
    return Shelf(Vocabulary(tuple(catalogue.item_ids)), np.arange(size + 1) > 0, trie)


def _uniform(seeds: Sequence[int], size: int, numbers: int) -> FloatArray:
    """Each request's own numbers, (B, S, U): the first slots' are the same, however many slots there are."""
    uniform_BSU = np.empty((len(seeds), size, numbers), np.float32)
    for seed, uniform_SU in zip(seeds, uniform_BSU, strict=True):
        np.random.Generator(np.random.Philox(seed)).random(dtype=np.float32, out=uniform_SU)
    return uniform_BSU


def _rule(drawing: DrawingConfig, batch: int) -> Rule:
    numbers = (drawing.temperature, drawing.floor, drawing.novelty_bonus, drawing.value_weight)
    return Rule(*(np.full(batch, value, np.float32) for value in numbers))
