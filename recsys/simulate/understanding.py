"""How well a policy understands users it has talked with: the whole catalogue ranked for each, against what is true of him.

Knows nothing of how policies learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.click_model import Floats
from recsys.engine import Engine
from recsys.features import Wish
from recsys.policy import Asked, GenerativePolicy
from recsys.worlds import KnownWorld

USERS = 100
RANKED = 100
"""Places that count; a policy can't be asked for more at once."""


@dataclass(frozen=True)
class Understood:
    """One user at one time: the turns he had had, and the NDCG of the ranking."""

    turns: int
    ndcg: float


def understood(world: KnownWorld, engine: Engine, policy: GenerativePolicy, turns: Mapping[str, int]) -> list[Understood]:
    """Of the first users in `turns` (turns by user): their catalogue as the policy ranks it now, without luck and without exploring.

    NDCG over the first 100 places; the gain of an item is the true probability of a click in the first slot.
    """
    user_ids = sorted(turns)[:USERS]
    sharp = policy.with_drawing(replace(policy.drawing, way="beam", temperature=0.01, floor=0.0, novelty_bonus=0.0))
    wish = Wish((), (), {}, False, engine.catalogue.next_offset)
    asked = [Asked(user_id, engine.memory.view(user_id), {}, RANKED, wish, seed) for seed, user_id in enumerate(user_ids)]
    choices = sharp.decide(asked, engine.catalogue)
    return [
        Understood(turns[user_id], _ndcg(world, user_id, choice.item_ids, engine.catalogue.item_ids))
        for user_id, choice in zip(user_ids, choices, strict=True)
    ]


def _ndcg(world: KnownWorld, user_id: str, ranked: Sequence[str], item_ids: Sequence[str]) -> float:
    ideal = np.sort(world.expected_reward(user_id, item_ids, 0))[::-1][: len(ranked)]
    return float(_discounted(world.expected_reward(user_id, ranked, 0)) / _discounted(ideal))


def _discounted(gains: Floats) -> float:
    """Discounted cumulative gain (Järvelin & Kekäläinen 2002)."""
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())
