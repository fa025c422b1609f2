"""Versions under a running server: follows what is published, tries each version out beside the one that answers, then swaps.

Knows nothing of gRPC or of requests but the golden ones that it asks.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.artifact import BadArtifact
from recsys import publisher
from recsys.catalogue import Catalogue, item_key
from recsys.engine import Engine
from recsys.features import Wish
from recsys.memory import GAP_BUCKETS, View
from recsys.policy import Asked, Choice, DrawingConfig, GenerativePolicy
from recsys.publisher import Published
from streaming.clock import Clock
from streaming.proto.recommender_pb2 import Degraded

LOG = logging.getLogger(__name__)

RETRY_REFUSED_MS = 60_000
"""A version that was refused is tried again after this long: a disk may have been at fault and not its bytes."""


@dataclass(frozen=True)
class Loaded:
    """The version that answers for a variant."""

    published: Published
    policy: GenerativePolicy
    loaded_at_ms: int
    load_s: float
    """Wall seconds from its bytes to its first answer."""


@dataclass(frozen=True)
class Refused:
    """A version that does not answer, and why."""

    published: Published | None
    """None when CURRENT.json itself can't be read."""
    reason: str
    refused_at_ms: int


class HotSwap:
    """Follows CURRENT.json of each variant: verifies and loads beside, tries it out, swaps one reference."""

    def __init__(self, engine: Engine, clock: Clock, state_dir: Path, variants: Sequence[str], drawing: DrawingConfig) -> None:
        self.variants = tuple(variants)
        self.loaded: dict[str, Loaded] = {}
        self.refused: dict[str, Refused] = {}
        """Variants whose current version was refused."""
        self._engine, self._clock, self._state_dir, self._drawing = engine, clock, state_dir, drawing

    def follow(self) -> None:
        """Serve what is current now. A version that can't be trusted is refused and the one before goes on, marked so."""
        for variant in self.variants:
            published, started_s = None, time.perf_counter()
            try:
                published = publisher.current(self._state_dir / variant)
                if published is not None and self._is_news(variant, published):
                    policy = _tried(published, self._drawing, self._engine.memory.config.num_kinds)
                    self._serve(variant, published, policy, time.perf_counter() - started_s)
            except (BadArtifact, OSError) as error:
                self._refuse(variant, published, str(error))

    def _is_news(self, variant: str, published: Published) -> bool:
        refused, loaded = self.refused.get(variant), self.loaded.get(variant)
        if refused is None:
            return loaded is None or loaded.published != published
        return refused.published != published or self._clock.now_ms() - refused.refused_at_ms >= RETRY_REFUSED_MS

    def _serve(self, variant: str, published: Published, policy: GenerativePolicy, load_s: float) -> None:
        # With a newer version on disk than the one to serve, that one was rolled back.
        is_newest = published.policy_version >= publisher.newest_version(self._state_dir / variant)
        self._engine.serve(variant, policy, Degraded.DEGRADED_NONE if is_newest else Degraded.DEGRADED_LAST_GOOD)
        self.loaded[variant] = Loaded(published, policy, self._clock.now_ms(), load_s)
        self.refused.pop(variant, None)

    def _refuse(self, variant: str, published: Published | None, reason: str) -> None:
        before, self.refused[variant] = self.refused.get(variant), Refused(published, reason, self._clock.now_ms())
        if before is None or (before.published, before.reason) != (published, reason):
            serves = f"version {self.loaded[variant].policy.policy_version} serves on" if variant in self.loaded else "none serves"
            LOG.warning("%s: a version is refused, %s: %s", variant, serves, reason)
        if variant in self.loaded:
            self._engine.serve(variant, self.loaded[variant].policy, Degraded.DEGRADED_LAST_GOOD)


def _tried(published: Published, drawing: DrawingConfig, num_kinds: int) -> GenerativePolicy:
    """The policy of a version, after it answered the golden requests. BadArtifact when it can't be trusted."""
    artifact = publisher.load(published)
    name = f"version {published.policy_version}"
    for tensor_name, tensor in artifact.decoder.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise BadArtifact(f"{name}: {tensor_name} holds what is not a number")
    policy = GenerativePolicy(artifact, drawing)
    if policy.policy_version != published.policy_version:
        raise BadArtifact(f"{name} calls itself {policy.policy_version}")
    live_ids = [item_id for item_id, is_retired in zip(artifact.item_ids, artifact.retired_N.tolist(), strict=True) if not is_retired]
    golden = _golden(live_ids, num_kinds)
    try:
        with np.errstate(all="ignore"):  # what overflows is seen in the answers
            choices = policy.decide(golden, Catalogue())
    except (ArithmeticError, IndexError, ValueError) as error:
        raise BadArtifact(f"{name}: the golden requests failed: {error}") from error
    for asked, choice in zip(golden, choices, strict=True):
        legal = set(live_ids)
        if asked.wish.seen_excluded:
            legal -= set(live_ids[: len(asked.view.key_L)])
        reason = _mistake(choice, legal, min(asked.slate_size, artifact.decoder.config.max_slots, len(legal)))
        if reason:
            raise BadArtifact(f"{name}: the golden request got {reason}")
    return policy


def _golden(live_ids: Sequence[str], num_kinds: int) -> list[Asked]:
    """Ten items for a user nobody knows; for one who did something of each kind with items of this version; and without these items."""
    rows = num_kinds - 1
    keys = [item_key(item_id) for item_id in live_ids[:rows]]
    nobody = View(*(np.zeros(0, np.int64) for _ in range(3)))
    somebody = View(np.resize(np.array(keys, np.int64), rows), np.arange(1, num_kinds), np.arange(rows) % GAP_BUCKETS)
    users = (("nobody", nobody, False), ("somebody", somebody, False), ("somebody else", somebody, True))
    return [Asked(name, view, {}, 10, Wish([], [], {}, seen, 0), seed=0) for name, view, seen in users]


def _mistake(choice: Choice, legal: set[str], num_expected: int) -> str:
    """What is wrong with a slate that must hold `num_expected` of these items, each once; empty when nothing is."""
    if not len(set(choice.item_ids)) == len(choice.item_ids) == num_expected:
        return f"{choice.item_ids}, not {num_expected} items"
    if not legal.issuperset(choice.item_ids):
        return f"{sorted(set(choice.item_ids) - legal)}, not of its catalogue, or ruled out"
    if not all(np.isfinite(logprob) and logprob <= 1e-6 for logprob in choice.logprobs):
        return f"log-probabilities {choice.logprobs}"
    return ""
