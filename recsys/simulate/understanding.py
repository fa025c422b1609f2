"""How well a policy understands users it has talked with: the whole catalogue ranked for each, against what is true of him; and what
it would answer to one who wants nothing of its slate.

Knows nothing of how policies learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.catalogue import Catalogue, item_key
from recsys.click_model import Floats
from recsys.engine import Engine
from recsys.features import Wish
from recsys.memory import SHOWN, View
from recsys.policy import Asked, GenerativePolicy
from recsys.worlds import KnownWorld
from streaming.events import Feedback

USERS = 100
RANKED = 100
"""Places that count; a policy can't be asked for more at once."""


@dataclass(frozen=True)
class Understood:
    """One user at one time: the turns he had had, and the NDCG of the ranking."""

    turns: int
    ndcg: float


def understood(world: KnownWorld, engine: Engine, policy: GenerativePolicy, turns: Mapping[str, int]) -> list[Understood]:
    """Of the first users in `turns` (turns by user): their catalogue as the policy ranks it now (`ranked`).

    NDCG over the first 100 places; the gain of an item is the true probability of a click in the first slot.
    """
    user_ids = sorted(turns)[:USERS]
    views = [engine.memory.view(user_id) for user_id in user_ids]
    return [
        Understood(turns[user_id], _ndcg(world, user_id, item_ids, engine.catalogue.item_ids))
        for user_id, item_ids in zip(user_ids, ranked(policy, engine.catalogue, user_ids, views, RANKED), strict=True)
    ]


def second_tries(engine: Engine, policy: GenerativePolicy, turns: Mapping[str, int]) -> list[tuple[int, float, float]]:
    """Of the first users in `turns`, the turns he had had, and which share of the slate that he would get now he would be given again,
    by the same weights, had he passed all of it by, and had he disliked all of it. What does not listen repeats 1.
    """
    user_ids, size = sorted(turns)[:USERS], engine.config.default_slate_size
    views = [engine.memory.view(user_id) for user_id in user_ids]
    first = ranked(policy, engine.catalogue, user_ids, views, size)
    dislike = engine.memory.config.kind_of(Feedback(kind="dislike"))
    repeated = []
    for kinds in ([SHOWN], [SHOWN, dislike]):
        later = [_after(view, item_ids, kinds, engine.memory.config.rows) for view, item_ids in zip(views, first, strict=True)]
        again = ranked(policy, engine.catalogue, user_ids, later, size)
        repeated.append([len(set(old) & set(new)) / max(len(old), 1) for old, new in zip(first, again, strict=True)])
    return list(zip([turns[user_id] for user_id in user_ids], *repeated, strict=True))


def _after(view: View, item_ids: Sequence[str], kinds: Sequence[int], most: int) -> View:
    """A user's rows after one more of each kind for each item, all at once."""
    key_N = np.repeat([item_key(item_id) for item_id in item_ids], len(kinds))
    pairs = (view.key_L, key_N), (view.kind_L, np.tile(kinds, len(item_ids))), (view.gap_L, np.zeros_like(key_N))
    return View(*(np.concatenate(pair)[-most:] for pair in pairs))


def ranked(policy: GenerativePolicy, catalogue: Catalogue, user_ids: Sequence[str], views: Sequence[View], number: int) -> list[list[str]]:
    """The first items for users with these memories, without luck and without exploring.

    Slot by slot: drawn as a beam, all but the first chance would round to nothing so near to temperature 0, and luck would order the rest.
    """
    sharp = policy.with_drawing(replace(policy.drawing, way="slot", temperature=0.01, floor=0.0, novelty_bonus=0.0))
    wish = Wish((), (), {}, False, catalogue.next_offset)
    asked = [Asked(user_id, view, {}, number, wish, seed) for seed, (user_id, view) in enumerate(zip(user_ids, views, strict=True))]
    return [choice.item_ids for choice in sharp.decide(asked, catalogue)]


def _ndcg(world: KnownWorld, user_id: str, ranking: Sequence[str], item_ids: Sequence[str]) -> float:
    ideal = np.sort(world.expected_reward(user_id, item_ids, 0))[::-1][: len(ranking)]
    return float(_discounted(world.expected_reward(user_id, ranking, 0)) / _discounted(ideal))


def _discounted(gains: Floats) -> float:
    """Discounted cumulative gain (Järvelin & Kekäläinen 2002)."""
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())
