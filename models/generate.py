"""Draws slates from a decoder and says with which log-probability each slot was drawn.

Knows nothing of users, events or training. At every level the softmax runs over the legal children alone, after the
novelty bonus, the repeats and the temperature; a share `floor` is spread evenly over all legal items. So the chance of an
item is π(item) = (1 - floor) · Π_level p(code) + floor / legal items, and it sums to one over what is legal. Two ways:
`slot` draws one item after another, each seeing those before it; `beam` (models/beam.py) draws all at once from what the
first slot sees, without replacement. models/scoring.py says the same numbers of given slates, with gradient.

Shapes: B requests, S slots, K levels, C children, D width, Q walks, R item rows.
"""

from dataclasses import dataclass

import numpy as np

from models.beam import draw_beam
from models.content import FloatArray
from models.decoder import Context, Decoder
from models.inference import FrozenDecoder, Memory
from models.kernels import drawn, load
from models.successors import Successors
from models.trie import CountArray, IntArray, Legal, Trie
from models.walk import DoubleArray, Root, Rule, Walker, Wanted

WAYS = ("slot", "beam")
PART_WEIGHTS = 1 << 15
"""Items' chances that are computed together: they stay in a core's cache, and no memory is asked for anew."""


@dataclass(frozen=True)
class Slates:
    """What was drawn: item rows (B, S), 0 where nothing legal was left, and log-probabilities in nats, 0 there."""

    item_BS: IntArray
    logprob_BS: FloatArray
    kappa_B: FloatArray | None = None
    """Of a beam, log κ: what the perturbed log-probability of an item had to pass to be drawn (-inf where all legal ones were)."""


def novelty(decoder: Decoder, num_rows: int) -> FloatArray:
    """1 / sqrt(1 + what is known of an item), 0..1, (R,): the shape of a count-based bonus (Strehl and Littman 2008).

    What is known fades, so that an item that was not shown for long is new again.
    """
    return (1 / np.sqrt(1 + decoder.value_information[:num_rows].cpu().numpy())).astype(np.float32)


class Generator:
    """Draws slates under one version. `novelty_R` says how novel each item row is (0..1)."""

    def __init__(self, decoder: FrozenDecoder, trie: Trie, novelty_R: FloatArray, successors: Successors) -> None:
        load()
        self.decoder, self.trie = decoder, trie
        self._walker = Walker(decoder, trie, novelty_R, successors)

    def draw(
        self,
        context: Context,
        legal: Legal,
        rule: Rule,
        uniform_BSU: FloatArray,
        sizes_B: IntArray,
        *,
        way: str = "slot",
        memory: Memory | None = None,
    ) -> Slates:
        """A slate of up to `sizes_B` items for each request, in one of WAYS.

        `uniform_BSU` (B, S, K + 1) in [0, 1) are all the randomness, each request's its own. `memory` saves making the keys
        and values of the context again.
        """
        memory = memory or self.decoder.memory(context)
        asked = self._walker.asked(legal, rule, context)
        if way == "beam":
            first_BD = self.decoder.slot_input(self.decoder.start(memory, context), 0)
            state_BD = self.decoder.state(memory, self.decoder.slots(memory, 1), first_BD, 0)
            leaf_BS, logprob_BS, kappa_B = draw_beam(self._walker, state_BD, asked, uniform_BSU, sizes_B)
            return Slates(self._items(leaf_BS), logprob_BS, kappa_B)
        return self._draw_slots(context, memory, asked, uniform_BSU, sizes_B)

    def _draw_slots(self, context: Context, memory: Memory, asked: Wanted, uniform_BSU: FloatArray, sizes_B: IntArray) -> Slates:
        """Slot by slot: each slot sees those before it, and their items are not legal again."""
        decoder, walks, (batch, num_slots) = self.decoder, asked.of_Q, uniform_BSU.shape[:2]
        root, slots = Root.of(asked.legal), decoder.slots(memory, num_slots)
        left_B, start_BD, parts = root.total(), decoder.start(memory, context), self._parts(root, asked)
        leaf_BS, left_BS = np.full((batch, num_slots), -1), np.ones((batch, num_slots), np.int64)
        product_BS = np.ones((batch, num_slots))
        for slot in range(num_slots):
            drawn_B = (left_B > 0) & (slot < sizes_B)
            if not drawn_B.any():
                break
            x_BD = decoder.slot_input(start_BD, slot, leaf_BS[:, slot - 1] if slot else None)
            state_BD = decoder.state(memory, slots, x_BD, slot)
            of_parts = [self._draw_slot(state_BD[now], its_root, its, uniform_BSU[now, slot]) for now, its_root, its in parts]
            first_B, leaf_B, product_BS[:, slot] = map(np.concatenate, zip(*of_parts, strict=True))
            leaf_BS[:, slot], left_BS[:, slot] = np.where(drawn_B, leaf_B, -1), left_B
            root.count_BC[walks, first_B] -= drawn_B
            if self.trie.levels > 1:  # below the root
                asked = asked.without(leaf_BS[:, slot : slot + 1])
                parts = self._parts(root, asked)
            left_B = left_B - drawn_B
        floor_B1 = asked.rule.floor_B[:, None].astype(np.float64)
        chance_BS = np.where(leaf_BS >= 0, (1 - floor_B1) * product_BS + floor_B1 / np.maximum(left_BS, 1), 1)
        return Slates(self._items(leaf_BS), np.log(chance_BS).astype(np.float32))

    def _draw_slot(self, state_BD: FloatArray, root: Root, asked: Wanted, uniform_BU: FloatArray) -> tuple[IntArray, IntArray, DoubleArray]:
        """One walk for each request: the child of the root, the leaf, and Π p(code). By the model or, where the first number says
        so, evenly over what is legal.
        """
        trie, uniform_UB = self.trie, np.ascontiguousarray(uniform_BU.T)
        evenly_B = uniform_UB[0] < asked.rule.floor_B
        first_B = node_B = np.zeros(len(state_BD), np.int64)
        product_B = np.ones(len(state_BD))
        children, count_BC = root.children, root.count_BC
        prefix: list[CountArray] = []
        for level in range(trie.levels):
            if level:
                prefix.append(trie.codes[level - 1][node_B])
                children = trie.children(node_B, level)
                count_BC = asked.legal.count(children.bound_QX)
            logits_BC = self._walker.logits(state_BD, node_B, children, prefix, asked)
            at_B, chance_B = drawn(logits_BC, count_BC, uniform_UB[level + 1], evenly_B)
            product_B *= chance_B
            # a walk with nothing legal, whose result is not used, stays among its node's children too
            node_B = np.minimum(children.start_Q + at_B, children.end_Q - 1)
            first_B = first_B if level else node_B
        return first_B, node_B, product_B

    def _parts(self, root: Root, asked: Wanted) -> list[tuple[slice, Root, Wanted]]:
        """So few requests at a time that what is said of all items stays in the cache; all, where the tree has levels: nodes are narrow."""
        batch, size = len(root.count_BC), max(1, PART_WEIGHTS // max(1, self.trie.num_items))
        if self.trie.levels > 1 or batch <= size:
            return [(slice(batch), root, asked)]
        parts = [slice(first, min(first + size, batch)) for first in range(0, batch, size)]
        return [(now, root.at(now), asked.at(np.arange(now.start, now.stop))) for now in parts]

    def _items(self, leaf_A: IntArray) -> IntArray:
        """Item rows of leaves; 0 for leaf -1."""
        item_A = np.zeros(leaf_A.shape, np.int64)
        item_A[leaf_A >= 0] = self.trie.item_of_leaf[leaf_A[leaf_A >= 0]]
        return item_A
