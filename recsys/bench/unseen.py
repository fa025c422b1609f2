"""What nobody was trained on: items that came later, and whole slates of what users went on to do.

Knows nothing of files. One more decoder, trained without some of the items and without the last five of every user who has
eight. Then the items come as new ones do, known by their content and neighbours, and are to be found where they are a user's test item;
and slates of ten are to hold what the five were. Shapes: U users, S slots, T targets, R item rows.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.content import ContentRule, ItemText
from models.generate import Generator
from models.inference import FrozenDecoder, LeafVectors
from models.next_item import right_aligned
from models.next_item_decoder import NextItemDecoder, context_of, fit_slates
from models.trie import IntArray, Legal
from models.walk import Rule
from recsys.abtest import FloatArray, interval_of
from recsys.bench.rank import COUNTING, RankConfig, Task, decoder_maker, hits, scores_of, trained
from recsys.bench.ranking import Scores, Split, rank, teaches

LOG = logging.getLogger(__name__)

SLATE, TARGETS = 10, 5
FEWEST = TARGETS + 3
"""Events of a user whose last TARGETS are kept out."""
AT_ONCE = 64
GREEDY = 0.01
"""A temperature at which nothing but the likeliest is ever drawn."""


def bench_unseen(items: Sequence[ItemText], sequences: Sequence[IntArray], config: RankConfig, seed: int) -> dict[str, Any]:
    """More of the key `cold` of `recsys bench rank --json` (no training event at all), and its key `slates`; None without such users."""
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(items))
    known = len(items) - round(config.held_out * len(items))  # in the new order, those held out come last
    place = np.argsort(order)
    users = [place[numbers] + 1 for numbers in sequences]
    ordered = [items[at] for at in order]
    seen = [rows[: -TARGETS if len(rows) >= FEWEST else -1] for rows in users]
    content = ContentRule.fitted(ordered[:known], config.content_dim).vectors(ordered)
    content_RC = np.concatenate([np.zeros((1, config.content_dim), np.float32), content])
    long, learned = [rows for rows in users if len(rows) >= FEWEST], [rows[rows <= known] for rows in seen]
    if not teaches(learned):
        LOG.warning("without what is held out nothing is left to learn from: no row for unseen items, no slates")
        return {"cold": [], "slates": None}
    task = Task(Split.of(learned, known + 1), content_RC[: known + 1])
    model, _ = trained(decoder_maker(config), task, config, seed)
    assert isinstance(model, NextItemDecoder)
    model = model.with_items(content[known:]) if known < len(items) else model

    grown = Task(replace(task.split, num_rows=len(items) + 1), content_RC)
    contenders: dict[str, Callable[[Task], Scores]] = {**COUNTING, "decoder": lambda _: scores_of(model)}
    tested = [rows for rows in users if len(rows) >= 3 and rows[-1] > known]
    histories, targets = [rows[:-1] for rows in tested], np.array([rows[-1] for rows in tested], np.int64)
    cold = [hits(name, seed, 0, rank(count(grown), histories, targets).all_U) for name, count in contenders.items()]
    if not long:
        return {"cold": cold, "slates": None}
    with config.device.visit(model.module):
        fit_slates(model, task.split.train, seed, num_slots=SLATE, later=TARGETS)
    return {"cold": cold, "slates": slate_rows(model, long, seed)}


def slate_rows(model: NextItemDecoder, users: Sequence[IntArray], seed: int) -> list[dict[str, Any]]:
    """NDCG at ten of greedy slates against what came next: drawn slot by slot, and the ten likeliest of the first slot.

    The first has a `lead` over the second, user by user, with its 95 % interval.
    """
    histories, target_UT = [rows[:-TARGETS] for rows in users], np.array([rows[-TARGETS:] for rows in users])
    ways: dict[str, Callable[[Sequence[IntArray]], IntArray]] = {
        "autoregressive": _slot_by_slot(model),
        "independent": lambda part: np.argsort(-scores_of(model)(part), axis=1, kind="stable")[:, :SLATE],
    }
    rows, ndcg_U = [], dict[str, FloatArray]()
    for name, slates in ways.items():
        slate_US = np.concatenate([slates(histories[first : first + AT_ONCE]) for first in range(0, len(histories), AT_ONCE)])
        repeats = sum(len(slate) - len(set(slate)) for slate in slate_US.tolist())
        ndcg_U[name] = slate_ndcg(slate_US, target_UT)
        rows.append({"model": name, "seed": seed, "ndcg_at_10": float(ndcg_U[name].mean()), "repeats": repeats, "slates": len(slate_US)})
    lead_U = ndcg_U["autoregressive"] - ndcg_U["independent"]
    rows[0] |= {"lead": float(lead_U.mean()), "lead_interval": interval_of(lead_U)}
    return rows


def slate_ndcg(slate_US: IntArray, target_UT: IntArray) -> FloatArray:
    """Σ hit / log2(place + 2) over what a slate that begins with all different targets would have, (U,)."""
    gain_S = 1 / np.log2(np.arange(slate_US.shape[1]) + 2)
    hit_US = (slate_US[:, :, None] == target_UT[:, None]).any(2)
    different_U = np.array([len(set(targets)) for targets in target_UT.tolist()])
    ideal_U = np.cumsum(gain_S)[np.minimum(different_U, len(gain_S)) - 1]
    ndcg_U: FloatArray = hit_US @ gain_S / ideal_U
    return ndcg_U


def _slot_by_slot(model: NextItemDecoder) -> Callable[[Sequence[IntArray]], IntArray]:
    """Slates of the request path, with the model frozen once."""
    trie = model.trie
    frozen = FrozenDecoder(model.decoder, LeafVectors.of(model.decoder, trie))
    generator = Generator(frozen, trie, np.zeros(trie.num_items + 1, np.float32), model.successors)

    def slates(histories: Sequence[IntArray]) -> IntArray:
        batch = len(histories)
        legal = Legal.of(trie, [np.zeros(0, np.int64)] * batch, [None] * batch)
        rule = Rule(*(np.full(batch, value, np.float32) for value in (GREEDY, 0, 0, 0)))
        uniform_BSU = np.full((batch, SLATE, trie.levels + 1), 0.5, np.float32)
        return generator.draw(context_of(right_aligned(histories, model.history)), legal, rule, uniform_BSU, np.full(batch, SLATE)).item_BS

    return slates
