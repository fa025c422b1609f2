"""Policies: a request and a memory in, a slate and its log-probabilities out. Knows nothing of logs, tokens or gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.artifact import Artifact
from models.content import FloatArray
from models.generate import WAYS, Generator, novelty
from models.inference import FrozenDecoder, LeafVectors
from models.trie import Trie
from models.walk import Rule
from recsys.catalogue import Catalogue, Vocabulary
from recsys.features import Shelf, Wish, contexts, legal_of, ruling
from recsys.memory import View


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How slates are drawn: part of the policy, stamped on each Decision."""

    way: str = "slot"
    """`slot`: one item after another, each seeing those before it. `beam`: all at once, faster, from what the first slot sees."""
    temperature: float = 0.35
    floor: float = 0.02
    """Share of each slot that is spread evenly over all legal items."""
    novelty_bonus: float = 0.5
    """Added to the logit of an item never shown; falls with 1 / sqrt(1 + exposures)."""

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"drawing.way is {self.way!r}; it must be one of {', '.join(WAYS)}")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"drawing.temperature is {self.temperature}; it must be 0.01..100")
        if not 0 <= self.floor <= 0.99:
            raise ValueError(f"drawing.floor is {self.floor}; it must be 0..0.99")
        if not 0 <= self.novelty_bonus <= 20:
            raise ValueError(f"drawing.novelty_bonus is {self.novelty_bonus}; it must be 0..20")


@dataclass(frozen=True)
class Asked:
    """One request as a policy sees it."""

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

    def decide(self, asked: Asked, catalogue: Catalogue) -> Choice:
        """Draw a slate. Deterministic given the request, its seed and the catalogue."""


class GenerativePolicy:
    """The decoder of one published version."""

    def __init__(self, artifact: Artifact, drawing: DrawingConfig) -> None:
        self.drawing = drawing
        self.policy_version = int(artifact.facts["policy_version"])
        self.trained_through_ms = int(artifact.facts["trained_through_ms"])
        trie = artifact.trie
        decoder = FrozenDecoder(artifact.decoder, LeafVectors.of(artifact.decoder, trie))
        self._generator = Generator(decoder, trie, novelty(artifact.exposures_R), artifact.followed.frozen(len(artifact.item_ids) + 1))
        self._shelf = Shelf(Vocabulary(artifact.item_ids), np.concatenate([[False], ~artifact.retired_N]), trie)
        config = artifact.decoder.config
        self._history, self._num_buckets, self._max_slots = config.rows_read, config.features, config.max_slots

    def decide(self, asked: Asked, catalogue: Catalogue) -> Choice:
        """See Policy."""
        vocabulary = self._shelf.vocabulary
        context = contexts([asked.view], [asked.context], vocabulary, self._history, self._num_buckets)
        ruled = ruling(asked.wish, asked.view, catalogue, self._shelf, vocabulary.num_rows)
        size = min(asked.slate_size, self._max_slots)
        uniform_BSU = _uniform(asked.seed, size, self._generator.trie.levels + 1)
        legal, rule = legal_of([ruled], self._shelf.trie), _rule(self.drawing)
        slates = self._generator.draw(context, legal, rule, uniform_BSU, np.array([size]), way=self.drawing.way)
        rows = slates.item_BS[0]
        kept = rows > 0
        return Choice([vocabulary.item_ids[row - 1] for row in rows[kept]], slates.logprob_BS[0][kept].tolist())


class UniformPolicy:
    """Every legal item alike: what answers before anything was published, and the `random` baseline."""

    policy_version = 0
    trained_through_ms = 0

    def __init__(self) -> None:
        self.drawing = DrawingConfig(temperature=1, floor=0, novelty_bonus=0)
        self._catalogue = Catalogue()
        self._shelf = _plain_shelf(self._catalogue)

    def decide(self, asked: Asked, catalogue: Catalogue) -> Choice:
        """See Policy."""
        shelf = self._shelf_of(catalogue)
        ruled = ruling(asked.wish, asked.view, catalogue, shelf, shelf.vocabulary.num_rows)
        allowed = np.arange(shelf.trie.num_items) if ruled.allow is None else ruled.allow
        rows = shelf.trie.item_of_leaf[np.setdiff1d(allowed, ruled.exclude)]
        size = min(asked.slate_size, len(rows))
        drawn = np.random.Generator(np.random.Philox(asked.seed)).permutation(rows)[:size].tolist()
        item_ids = shelf.vocabulary.item_ids
        return Choice([item_ids[row - 1] for row in drawn], [float(-np.log(len(rows) - slot)) for slot in range(size)])

    def _shelf_of(self, catalogue: Catalogue) -> Shelf:
        """Built anew only when the items are others: 20,000 of them take 20 ms."""
        if self._catalogue is not catalogue or self._shelf.trie.num_items != len(catalogue.item_ids):
            self._catalogue, self._shelf = catalogue, _plain_shelf(catalogue)
        return self._shelf


def _plain_shelf(catalogue: Catalogue) -> Shelf:
    """All items, one leaf each in order of row; those retired go by each request's ruling."""
    size = len(catalogue.item_ids)
    trie = Trie.built(np.arange(size, dtype=np.int32)[:, None], np.zeros(size, bool))
    return Shelf(Vocabulary(tuple(catalogue.item_ids)), np.arange(size + 1) > 0, trie)


def _uniform(seed: int, size: int, numbers: int) -> FloatArray:
    random = np.random.Generator(np.random.Philox(seed))
    return random.random((1, size, numbers), dtype=np.float32)


def _rule(drawing: DrawingConfig) -> Rule:
    return Rule(*(np.array([value], np.float32) for value in (drawing.temperature, drawing.floor, drawing.novelty_bonus)))
