"""Events → what the model reads: the same code in server, learner and replay, so that serving and training can't differ.

Knows nothing of weights or of how a batch is trained on.
Shapes: B requests, L history, X request-context features, S slots, N items.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.decoder import Context
from models.objective import Batch
from models.successors import ACT, LAG_WEIGHTS, sequence_pairs
from models.trie import IntArray, Legal, Trie, common
from models.walk import Rule
from recsys.catalogue import Catalogue, Rows, Vocabulary
from recsys.memory import Memory, View
from streaming.events import Decision
from streaming.joiner import Example

FEATURES_PER_REQUEST = 8
"""X: entries of the request's context that are read, in order of key."""
FILTERS_KEPT = 64
"""Filters of which a shelf keeps the leaves."""


@dataclass(frozen=True)
class Wish:
    """What a request asked to have in its slate, and as of when; the same for a request and for its Decision."""

    exclude_item_ids: Sequence[str]
    candidate_item_ids: Sequence[str]
    where: Mapping[str, str]
    seen_excluded: bool
    items_offset: int

    @staticmethod
    def of(decision: Decision) -> "Wish":
        """The wish that a Decision recorded."""
        return Wish(decision.exclude_item_ids, decision.candidate_item_ids, decision.where, decision.seen_excluded, decision.items_offset)


@dataclass(frozen=True)
class Ruling:
    """Leaves taken out of all that is alive, or of `allow` where that is given: ascending, each once, all alive."""

    exclude: IntArray
    allow: IntArray | None


class Shelf:
    """The items of one tree: their vocabulary, and which rows are alive in it, (N + 1,)."""

    def __init__(self, vocabulary: Vocabulary, alive_R: npt.NDArray[np.bool_], trie: Trie) -> None:
        self.vocabulary, self.alive_R, self.trie = vocabulary, alive_R, trie
        self._matching: dict[tuple[tuple[str, str], ...], tuple[list[Rows], IntArray]] = {}
        self._num_dead = 0

    def matching(self, where: Mapping[str, str], catalogue: Catalogue, items_offset: int) -> IntArray:
        """Leaves of what is alive and had all these attribute values as of `items_offset`.

        As of now they are kept from one request to the next, until an item of this shelf gets or loses one of the values.
        """
        pairs = tuple(sorted(where.items()))
        if catalogue.has_changed_since(items_offset):
            return self.trie.live_leaves(catalogue.matching_rows(where, items_offset))
        rows = [self._known(catalogue.rows_with(pair)) for pair in pairs]
        kept = self._matching.get(pairs)
        if kept is None or not all(map(_same, kept[0], rows)):
            lists = sorted((self.trie.live_leaves(part) for part in rows), key=len)
            kept = self._matching[pairs] = rows, reduce(common, lists)
            if len(self._matching) > FILTERS_KEPT:
                del self._matching[next(iter(self._matching))]
        return kept[1]

    def retired_since(self, catalogue: Catalogue, items_offset: int) -> Rows:
        """Rows that are alive here and retired before `items_offset`. Those retired before all of them are not looked at again."""
        rows = catalogue.retired_rows(items_offset)[self._num_dead :]
        alive = (rows < len(self.alive_R)) & self.alive_R[np.minimum(rows, len(self.alive_R) - 1)]
        self._num_dead += int(alive.argmax()) if alive.any() else len(rows)
        return rows[alive]

    def _known(self, rows: Rows) -> Rows:
        return rows[: rows.searchsorted(self.trie.num_items + 1)]


def _same(before: Rows, now: Rows) -> bool:
    """Whether two lists of the catalogue are one and as long: it adds to a list behind its end and makes a new one for any other change."""
    return len(before) == len(now) and before.base is now.base


def ruling(wish: Wish, view: View, catalogue: Catalogue, shelf: Shelf, num_rows: int) -> Ruling:
    """What may be generated for one request from the first `num_rows` rows of a shelf (those its version knew).

    Items asked for or ruled out that nobody knows are left aside.
    """
    vocabulary, trie = shelf.vocabulary, shelf.trie
    parts = [vocabulary.known_rows(wish.exclude_item_ids), shelf.retired_since(catalogue, wish.items_offset)]
    if wish.seen_excluded:
        parts.append(vocabulary.rows(view.key_L))
    if wish.where:  # nothing is known of what came later
        num_rows = min(num_rows, catalogue.num_rows(wish.items_offset))
    out = trie.live_leaves(np.concatenate([*parts, np.arange(num_rows, vocabulary.num_rows)]))
    allow = None
    if wish.candidate_item_ids:
        allow = trie.live_leaves(vocabulary.known_rows(wish.candidate_item_ids))
    if wish.where:
        matching = shelf.matching(wish.where, catalogue, wish.items_offset)
        allow = matching if allow is None else common(allow, matching)
    return Ruling(out, allow)


def legal_of(rulings: Sequence[Ruling], trie: Trie) -> Legal:
    """The rulings of several requests, one walk each."""
    return Legal.of(trie, [ruling.exclude for ruling in rulings], [ruling.allow for ruling in rulings])


def feature_buckets(context: Mapping[str, str], num_buckets: int) -> list[int]:
    """Each `key=value` of a request's context as a bucket 1..num_buckets - 1 (CRC-32), in order of key."""
    pairs = sorted(context.items())[:FEATURES_PER_REQUEST]
    return [1 + zlib.crc32(f"{key}={value}".encode()) % (num_buckets - 1) for key, value in pairs]


def contexts(
    views: Sequence[View], requests: Sequence[Mapping[str, str]], vocabulary: Vocabulary, history: int, num_buckets: int
) -> Context:
    """What the policy sees: the newest `history` rows of each view, right-aligned, and the request's own context."""
    length = max(1, min(history, max((len(view.key_L) for view in views), default=0)))
    key_BL, kind_BL, gap_BL = (np.zeros((len(views), length), np.int64) for _ in range(3))
    for row, view in enumerate(views):
        count = min(length, len(view.key_L))
        if count:
            key_BL[row, -count:], kind_BL[row, -count:], gap_BL[row, -count:] = (
                view.key_L[-count:],
                view.kind_L[-count:],
                view.gap_L[-count:],
            )
    item_BL = np.where(kind_BL > 0, vocabulary.rows(key_BL), 0)
    feature_BX = padded([np.array(feature_buckets(request, num_buckets), np.int64) for request in requests])
    return Context(item_BL, kind_BL, gap_BL, feature_BX)


def padded(rows: Sequence[Rows]) -> Rows:
    """Rows of different lengths as one array, 0 behind the shorter ones."""
    out = np.zeros((len(rows), max((len(row) for row in rows), default=0)), np.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return out


@dataclass(frozen=True)
class Lesson:
    """One slate to learn from: an Example, or several imported ones of one user that followed each other."""

    decision: Decision
    view: View
    item_ids: tuple[str, ...]
    rewards: tuple[float, ...]
    shown: tuple[bool, ...]
    logged: tuple[float, ...]
    own: bool


def lessons(examples: Sequence[Example], memory: Memory) -> list[Lesson]:
    """Each Example with the user's memory as its policy saw it."""
    return [_lesson([example], memory) for example in examples]


def imported_lessons(examples: Sequence[Example], memory: Memory, *, slots: int, within_ms: int = 86_400_000) -> list[Lesson]:
    """Imported Examples as slates of up to `slots`: what one user was shown in a row, read with the memory before the first.

    Logs of other recommenders tell of single items; what a user saw within a day is the nearest thing to a slate that they hold.
    """
    sessions: dict[str, list[list[Example]]] = {}
    for example in examples:
        user = sessions.setdefault(example.decision.user_id, [])
        fits = user and sum(len(one.shown) for one in user[-1]) + len(example.shown) <= slots
        if fits and example.decision.event_time_ms - user[-1][0].decision.event_time_ms <= within_ms:
            user[-1].append(example)
        else:
            user.append([example])
    return [part for user in sessions.values() for session in user for part in _cut(_lesson(session, memory), slots)]


def _cut(lesson: Lesson, slots: int) -> list[Lesson]:
    """In pieces of at most so many slots: a log whose times are dates shows somebody hundreds of items at once."""
    if len(lesson.item_ids) <= slots:
        return [lesson]
    parts = [slice(begin, begin + slots) for begin in range(0, len(lesson.item_ids), slots)]
    return [
        replace(lesson, item_ids=lesson.item_ids[part], rewards=lesson.rewards[part], shown=lesson.shown[part], logged=lesson.logged[part])
        for part in parts
    ]


def _lesson(examples: Sequence[Example], memory: Memory) -> Lesson:
    first = examples[0]
    item_ids: list[str] = []
    rewards: list[float] = []
    shown: list[bool] = []
    for example in examples:
        by_slot = dict(zip(example.shown, example.rewards, strict=True))
        item_ids += example.decision.item_ids
        rewards += [by_slot.get(slot, 0.0) for slot in range(len(example.decision.item_ids))]
        shown += [slot in by_slot for slot in range(len(example.decision.item_ids))]
    logged = tuple(first.decision.slot_logprobs) if first.own else (0.0,) * len(item_ids)
    view = memory.view(first.decision.user_id, first.memory_offset)
    return Lesson(first.decision, view, tuple(item_ids), tuple(rewards), tuple(shown), logged, first.own)


def neighbours(met: Sequence[Lesson], row_of: Mapping[str, int]) -> Rows:
    """Pairs of item rows that stand next to each other in a lesson, both ways, (P, 2)."""
    rows = [[row_of[item_id] for item_id in lesson.item_ids if item_id in row_of] for lesson in met]
    pairs = [pair for one in rows for pair in pairwise(one)]
    there_P2 = np.array(pairs, np.int64).reshape(-1, 2)
    return np.concatenate([there_P2, there_P2[:, ::-1]])


def followed(met: Sequence[Lesson], vocabulary: Vocabulary) -> tuple[Rows, Rows, FloatArray]:
    """What followed what: source rows, successor rows, weights (P,). Successors are items that earned a reward, in order of slot;
    they follow each other and the last things that their user did before.
    """
    parts = []
    for lesson in met:
        acts = vocabulary.rows(lesson.view.key_L[lesson.view.kind_L >= ACT][-len(LAG_WEIGHTS) :])
        gained = [vocabulary.row_of.get(item_id, 0) for item_id, reward in zip(lesson.item_ids, lesson.rewards, strict=True) if reward > 0]
        if gained:
            source_P, row_P, weight_P = sequence_pairs(np.concatenate([acts, gained]).astype(np.int64))
            new_P = np.isin(row_P, gained)
            parts.append((source_P[new_P], row_P[new_P], weight_P[new_P]))
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    source_P, row_P, weight_P = (np.concatenate(part) for part in zip(empty, *parts, strict=True))
    return source_P, row_P, weight_P


@dataclass(frozen=True)
class BatchMaker:
    """What turns lessons into arrays: the items they may speak of and the sizes of the model."""

    catalogue: Catalogue
    shelf: Shelf
    history: int
    num_buckets: int

    def batch(self, chosen: Sequence[Lesson], num_rows: Sequence[int]) -> Batch:
        """Arrays of the lessons; `num_rows` are the item rows that each one's version knew."""
        slots = max((len(lesson.item_ids) for lesson in chosen), default=1)
        shape = (len(chosen), slots)
        slate_BS, shown_BS = np.zeros(shape, np.int64), np.zeros(shape, bool)
        reward_BS, logged_BS = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for at, lesson in enumerate(chosen):
            size = len(lesson.item_ids)
            slate_BS[at, :size] = [self.shelf.vocabulary.row_of.get(item_id, 0) for item_id in lesson.item_ids]
            shown_BS[at, :size], reward_BS[at, :size], logged_BS[at, :size] = lesson.shown, lesson.rewards, lesson.logged
        shown_BS &= (slate_BS > 0) & self.shelf.alive_R[slate_BS]
        rulings = [self._ruling(lesson, rows) for lesson, rows in zip(chosen, num_rows, strict=True)]
        own_B = np.array([lesson.own for lesson in chosen], bool)
        return Batch(
            context=contexts(
                [lesson.view for lesson in chosen],
                [lesson.decision.context for lesson in chosen],
                self.shelf.vocabulary,
                self.history,
                self.num_buckets,
            ),
            slate_BS=slate_BS,
            shown_BS=shown_BS,
            reward_BS=reward_BS,
            logged_BS=logged_BS,
            own_B=own_B,
            beam_B=own_B & np.array([lesson.decision.way == "beam" for lesson in chosen], bool),
            weight_B=np.ones(len(chosen), np.float32),
            legal=legal_of(rulings, self.shelf.trie),
            rule=_rule([lesson.decision for lesson in chosen], own_B),
        )

    def _ruling(self, lesson: Lesson, num_rows: int) -> Ruling:
        if not lesson.own:  # what somebody else's recommender may not show is not known
            return Ruling(np.zeros(0, np.int64), None)
        return ruling(Wish.of(lesson.decision), lesson.view, self.catalogue, self.shelf, num_rows)


def _rule(decisions: Sequence[Decision], own_B: npt.NDArray[np.bool_]) -> Rule:
    return Rule(
        np.where(own_B, [decision.temperature for decision in decisions], 1).astype(np.float32),
        np.where(own_B, [decision.floor for decision in decisions], 0).astype(np.float32),
        np.where(own_B, [decision.novelty_bonus for decision in decisions], 0).astype(np.float32),
        np.where(own_B, [decision.value_weight for decision in decisions], 0).astype(np.float32),
    )
