"""Versions under a running server: follows what is published, tries each version out beside the one that answers, then swaps.

Knows nothing of gRPC or of requests but the golden ones that it asks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.artifact import Artifact, BadArtifact
from recsys import publisher
from recsys.catalogue import Catalogue
from recsys.engine import Engine
from recsys.features import Wish
from recsys.memory import View
from recsys.policy import Asked, DrawingConfig, GenerativePolicy, Policy
from recsys.publisher import Published
from streaming.clock import Clock
from streaming.proto.recommender_pb2 import Degraded

RETRY_REFUSED_MS = 60_000
"""A version that was refused is tried again after this long: a disk may have been at fault and not its bytes."""


@dataclass(frozen=True)
class Loaded:
    """The version that answers for a variant."""

    published: Published
    policy: Policy
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
                    policy = _tried(published, self._drawing)
                    self._serve(variant, published, policy, time.perf_counter() - started_s)
            except (BadArtifact, OSError) as error:
                self._refuse(variant, published, str(error))

    def _is_news(self, variant: str, published: Published) -> bool:
        refused, loaded = self.refused.get(variant), self.loaded.get(variant)
        if refused is None:
            return loaded is None or loaded.published != published
        return refused.published != published or self._clock.now_ms() - refused.refused_at_ms >= RETRY_REFUSED_MS

    def _serve(self, variant: str, published: Published, policy: Policy, load_s: float) -> None:
        # With a newer version on disk than the one to serve, that one was rolled back.
        is_newest = published.policy_version >= publisher.newest_version(self._state_dir / variant)
        self._engine.serve(variant, policy, Degraded.DEGRADED_NONE if is_newest else Degraded.DEGRADED_LAST_GOOD)
        self.loaded[variant] = Loaded(published, policy, self._clock.now_ms(), load_s)
        self.refused.pop(variant, None)

    def _refuse(self, variant: str, published: Published | None, reason: str) -> None:
        self.refused[variant] = Refused(published, reason, self._clock.now_ms())
        if variant in self.loaded:
            self._engine.serve(variant, self.loaded[variant].policy, Degraded.DEGRADED_LAST_GOOD)


def _tried(published: Published, drawing: DrawingConfig) -> GenerativePolicy:
    """The policy of a version, after it answered a golden request. BadArtifact when it can't be trusted."""
    artifact = publisher.load(published)
    policy = GenerativePolicy(artifact, drawing)
    if policy.policy_version != published.policy_version:
        raise BadArtifact(f"version {published.policy_version} calls itself {policy.policy_version}")
    _check_golden(artifact, policy)
    return policy


def _check_golden(artifact: Artifact, policy: Policy) -> None:
    """Weights must be numbers; and where a user nobody knows asks for ten items, as many as there are must come, each once."""
    for name, tensor in artifact.decoder.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise BadArtifact(f"version {policy.policy_version}: {name} holds what is not a number")
    nobody = View(*(np.zeros(0, np.int64) for _ in range(3)))
    with np.errstate(all="ignore"):  # what overflows is seen in the answer
        choice = policy.decide([Asked(nobody, {}, 10, Wish([], [], {}, False, 0), seed=0)], Catalogue())[0]
    num_expected = min(10, artifact.decoder.config.max_slots, int((~artifact.retired_N).sum()))
    if not len(set(choice.item_ids)) == len(choice.item_ids) == num_expected:
        raise BadArtifact(f"version {policy.policy_version}: the golden request got {choice.item_ids}, not {num_expected} items")
    if not all(np.isfinite(logprob) and logprob <= 1e-6 for logprob in choice.logprobs):
        raise BadArtifact(f"version {policy.policy_version}: the golden request got log-probabilities {choice.logprobs}")
