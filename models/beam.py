"""A slate without replacement in one walk of many beams: the stochastic beam search of Kool, van Hoof and Welling (ICML 2019).

Every leaf has a clock that rings after an exponential time with the leaf's chance as its rate (-log of it is the perturbed
log-probability of the paper: a Gumbel variable); the slate is the first leaves to ring, in order. So the first is drawn with
its chance, the next with its chance among the rest, and so on. Under a node the first ring has the sum of the chances as its
rate, and this sum is known without looking under it: (1 - floor) · Π p(code) + floor · legal leaves under it / all legal
leaves. So times are drawn from the root down: given that the first ring under a node is at time t, the times of its children
are t + (wait - least wait), wait ~ Exp(chance) for each. The root's time is drawn like any other: to fix it biases κ.

Shapes: B requests, S slots, J beams, Q walks (the beams that are alive, of all requests), C children, K levels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.repeat import Remembered
from models.trie import BoolArray, Children, CountArray, IntArray, Legal
from models.walk import DoubleArray, Root, Rule, Walker, weights

BitArray = npt.NDArray[np.uint64]

LEAST = 1e-300
"""A chance below this counts as this."""


@dataclass(frozen=True)
class _Beams:
    """The beams of each request by time, (B, J), the first to ring first; time inf where there are fewer."""

    time_BJ: DoubleArray
    node_BJ: IntArray
    product_BJ: DoubleArray
    """Π p(code) so far."""
    prefix: list[CountArray]
    """Codes so far, (B, J) by level."""


@dataclass(frozen=True)
class _Level:
    """What one level looked like from above, kept for what was not chosen there."""

    chance_QC: DoubleArray
    of_Q: IntArray
    beam_Q: IntArray
    walk_BJ: IntArray
    """From which walk each beam below came, and as which child."""
    child_BJ: IntArray


def draw_beam(
    walker: Walker,
    state_BD: FloatArray,
    legal: Legal,
    rule: Rule,
    remembered: Remembered | None,
    uniform_BSU: FloatArray,
    sizes_B: IntArray,
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Leaves (B, S), -1 behind the last; the log-probability of each slot after those before it; log κ (B,).

    The first two of each request's numbers seed its clocks, one for each node: they depend on nothing else in the batch.
    """
    num_slots, root = uniform_BSU.shape[1], Root.of(legal)
    seed_B, left_B = _seeds(uniform_BSU[:, 0]), root.total()
    start_B1 = np.where(left_B > 0, _exponential(seed_B, np.zeros(1, np.int64)), np.inf)[:, None]
    beams = _Beams(start_B1, np.zeros(start_B1.shape, np.int64), np.ones(start_B1.shape), [])
    levels: list[_Level] = []
    first_clock = 1
    for level in range(walker.trie.levels):
        beams, seen = _descend(walker, state_BD, legal, root, rule, remembered, beams, seed_B, first_clock, num_slots + 1)
        levels.append(seen)
        first_clock += int(walker.trie.starts[level][-1])
    return _slates(beams, levels, sizes_B, num_slots)


def _descend(
    walker: Walker,
    state_BD: FloatArray,
    legal: Legal,
    root: Root,
    rule: Rule,
    remembered: Remembered | None,
    beams: _Beams,
    seed_B: BitArray,
    first_clock: int,
    keep: int,
) -> tuple[_Beams, _Level]:
    """From the beams of one level to the first `keep` to ring among all their children."""
    trie, level, (batch, num_beams) = walker.trie, len(beams.prefix), beams.time_BJ.shape
    of_Q, beam_Q = np.isfinite(beams.time_BJ).nonzero()
    node_Q, rule_Q, left_Q = beams.node_BJ[of_Q, beam_Q], rule.at(of_Q), root.total()[of_Q]
    children, count_QC = root.children, root.count_BC[of_Q]
    if level:
        children = trie.children(node_Q, level)
        count_QC = legal.at(of_Q).count(children.bound_QX)
    prefix = [codes_BJ[of_Q, beam_Q] for codes_BJ in beams.prefix]
    logits_QC = walker.logits(state_BD[of_Q], node_Q, children, prefix, rule_Q, remembered, of_Q)
    weight_QC = weights(logits_QC.astype(np.float64), count_QC)
    weight_QC *= (beams.product_BJ[of_Q, beam_Q] / weight_QC.sum(1))[:, None]
    floor_Q1 = rule_Q.floor_B[:, None].astype(np.float64)
    chance_QC = np.maximum((1 - floor_Q1) * weight_QC + floor_Q1 / left_Q[:, None] * count_QC, LEAST) * (count_QC > 0)
    time_QC = _times(beams.time_BJ[of_Q, beam_Q], chance_QC, _clocks(seed_B[of_Q], children, first_clock))

    num_children = time_QC.shape[1]
    time_BJC = np.full((batch, num_beams, num_children), np.inf)
    time_BJC[of_Q, beam_Q] = time_QC
    time_BJ, at_BJ = _first(time_BJC.reshape(batch, -1), keep)
    walk_BJ = np.zeros((batch, num_beams), np.int64)
    walk_BJ[of_Q, beam_Q] = np.arange(len(of_Q))
    walk_BJ, child_BJ = np.take_along_axis(walk_BJ, at_BJ // max(num_children, 1), 1), at_BJ % max(num_children, 1)
    alive_BJ = np.isfinite(time_BJ)
    below_BJ, product_BJ = np.zeros(at_BJ.shape, np.int64), np.zeros(at_BJ.shape)
    walk_P, child_P = walk_BJ[alive_BJ], child_BJ[alive_BJ]
    below_BJ[alive_BJ] = np.broadcast_to(children.start_Q, len(of_Q))[walk_P] + child_P
    product_BJ[alive_BJ] = weight_QC[walk_P, child_P]
    codes = [np.take_along_axis(codes_BJ, at_BJ // max(num_children, 1), 1) for codes_BJ in beams.prefix]
    if level + 1 < trie.levels:
        codes.append(trie.codes[level][below_BJ])
    return _Beams(time_BJ, below_BJ, product_BJ, codes), _Level(chance_QC, of_Q, beam_Q, walk_BJ, child_BJ)


def _clocks(seed_Q: BitArray, children: Children, first_clock: int) -> DoubleArray:
    """An exponential variable of mean 1 for each child, (Q, C)."""
    place_QC = children.start_Q[:, None] + np.arange(children.bound_QX.shape[1] - 1)
    return _exponential(seed_Q[:, None], first_clock + place_QC)


def _times(time_Q: DoubleArray, chance_QC: DoubleArray, clock_QC: DoubleArray) -> DoubleArray:
    """When each child rings first, given when the first of them does; inf for a child that is not legal."""
    wait_QC = np.divide(clock_QC, chance_QC, out=np.full(chance_QC.shape, np.inf), where=chance_QC > 0)
    return time_Q[:, None] + (wait_QC - wait_QC.min(1, keepdims=True, initial=np.inf))


def _first(time_BT: DoubleArray, keep: int) -> tuple[DoubleArray, IntArray]:
    """The least `keep` times of each request in order, and their places."""
    at_BJ = (
        np.argpartition(time_BT, keep - 1, 1)[:, :keep]
        if keep < time_BT.shape[1]
        else np.arange(time_BT.shape[1])[None].repeat(len(time_BT), 0)
    )
    order_BJ = np.take_along_axis(time_BT, at_BJ, 1).argsort(1, kind="stable")
    at_BJ = np.take_along_axis(at_BJ, order_BJ, 1)
    return np.take_along_axis(time_BT, at_BJ, 1), at_BJ


def _slates(beams: _Beams, levels: list[_Level], sizes_B: IntArray, num_slots: int) -> tuple[IntArray, FloatArray, FloatArray]:
    batch, num_beams = beams.time_BJ.shape
    drawn_BJ = np.isfinite(beams.time_BJ) & (np.arange(num_beams) < sizes_B[:, None])
    chance_BJ, rest_B = _chances(levels, drawn_BJ)
    # what is left before a slot: what no slot took, and what this and the later ones took; sums of positive numbers only
    left_BJ = rest_B[:, None] + chance_BJ[:, ::-1].cumsum(1)[:, ::-1]
    logprob_BJ = np.where(drawn_BJ, np.log(np.where(drawn_BJ, chance_BJ / np.maximum(left_BJ, LEAST), 1)), 0)
    leaf_BS, logprob_BS = np.full((batch, num_slots), -1, np.int64), np.zeros((batch, num_slots), np.float32)
    width = min(num_slots, num_beams)
    leaf_BS[:, :width] = np.where(drawn_BJ, beams.node_BJ, -1)[:, :width]
    logprob_BS[:, :width] = np.minimum(logprob_BJ, 0)[:, :width]
    time_BT = np.concatenate([beams.time_BJ, np.full((batch, num_slots + 1), np.inf)], 1)
    kappa_B = -np.log(np.maximum(time_BT[np.arange(batch), sizes_B], LEAST))
    return leaf_BS, logprob_BS, kappa_B


def _chances(levels: list[_Level], drawn_BJ: BoolArray) -> tuple[DoubleArray, DoubleArray]:
    """The chance of each leaf that was drawn, (B, J), and of all legal leaves that were not, (B,).

    The latter hang at the children beside the paths to what was drawn.
    """
    at_B, at_J = drawn_BJ.nonzero()
    rest_B, chance_BJ = np.zeros(len(drawn_BJ)), np.zeros(drawn_BJ.shape)
    beam_P = at_J
    for seen in reversed(levels):
        walk_P, child_P = seen.walk_BJ[at_B, beam_P], seen.child_BJ[at_B, beam_P]
        if seen is levels[-1]:
            chance_BJ[at_B, at_J] = seen.chance_QC[walk_P, child_P]
        beside_QC = seen.chance_QC.copy()
        beside_QC[walk_P, child_P] = 0
        passed_Q = np.zeros(len(beside_QC), bool)
        passed_Q[walk_P] = True
        rest_B += np.bincount(seen.of_Q, beside_QC.sum(1) * passed_Q, len(rest_B))
        beam_P = seen.beam_Q[walk_P]
    return chance_BJ, rest_B


def _seeds(uniform_BU: FloatArray) -> BitArray:
    """48 bits of two float32 in [0, 1), mixed to 64."""
    high_B, low_B = ((uniform_BU[:, at].astype(np.float64) * (1 << 24)).astype(np.uint64) for at in (0, 1))
    return _mixed_bits(high_B << np.uint64(24) | low_B)


def _exponential(seed_A: BitArray, number_A: IntArray) -> DoubleArray:
    """-log(1 - u), u the `number`-th output of SplitMix64 from `seed` (Steele, Lea and Flood 2014), which needs none before it."""
    bits_A = _mixed_bits(seed_A + number_A.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return -np.log1p(-((bits_A >> np.uint64(11)) * 2.0**-53))


def _mixed_bits(bits_A: BitArray) -> BitArray:
    bits_A = (bits_A ^ bits_A >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits_A = (bits_A ^ bits_A >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits_A ^ bits_A >> np.uint64(31)
