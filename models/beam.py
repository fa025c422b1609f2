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
from models.trie import BoolArray, Children, CountArray, IntArray, Trie
from models.walk import DoubleArray, Root, Walker, Wanted

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
    walk_BJ: IntArray
    """From which walk of the level above each came, and as which child."""
    child_BJ: IntArray


@dataclass(frozen=True)
class _Look:
    """What Q walks, one for each beam that is alive, see of the children of their nodes."""

    of_Q: IntArray
    beam_Q: IntArray
    children: Children
    product_QC: DoubleArray
    chance_QC: DoubleArray


@dataclass(frozen=True)
class _Level:
    """What was seen at one level, kept for what was not chosen there, and what was chosen."""

    seen: _Look
    beams: _Beams


def draw_beam(
    walker: Walker, state_BD: FloatArray, asked: Wanted, uniform_BSU: FloatArray, sizes_B: IntArray
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Leaves (B, S), -1 behind the last; the log-probability of each slot after those before it; log κ (B,).

    The first two of each request's numbers seed its clocks, one for each node: they depend on nothing else in the batch.
    """
    num_slots, root = uniform_BSU.shape[1], Root.of(asked.legal)
    seed_B, left_B = _seeds(uniform_BSU[:, 0]), root.total()
    start_B1 = np.where(left_B > 0, _exponential(seed_B, np.zeros(1, np.int64)), np.inf)[:, None]
    nowhere_B1 = np.zeros(start_B1.shape, np.int64)
    beams = _Beams(start_B1, nowhere_B1, np.ones(start_B1.shape), [], nowhere_B1, nowhere_B1)
    levels: list[_Level] = []
    first_clock = 1
    for level in range(walker.trie.levels):
        seen = _look(walker, state_BD, asked, root, beams)
        time_QC = _times(beams.time_BJ[seen.of_Q, seen.beam_Q], seen.chance_QC, _clocks(seed_B[seen.of_Q], seen.children, first_clock))
        beams = _first(walker.trie, beams, seen, time_QC, num_slots + 1)
        levels.append(_Level(seen, beams))
        first_clock += int(walker.trie.starts[level][-1])
    return _slates(beams, levels, sizes_B, num_slots)


def _look(walker: Walker, state_BD: FloatArray, asked: Wanted, root: Root, beams: _Beams) -> _Look:
    level = len(beams.prefix)
    of_Q, beam_Q = np.isfinite(beams.time_BJ).nonzero()
    node_Q, asked_Q = beams.node_BJ[of_Q, beam_Q], asked.at(of_Q)
    if level:
        children = walker.trie.children(node_Q, level)
        count_QC = asked_Q.legal.count(children.bound_QX)
    else:
        children, count_QC = root.children, root.count_BC[of_Q]
    prefix = [codes_BJ[of_Q, beam_Q] for codes_BJ in beams.prefix]
    logits_QC = walker.logits(state_BD[of_Q], node_Q, children, prefix, asked_Q)
    product_QC: DoubleArray = _weights(logits_QC.astype(np.float64), count_QC)
    product_QC *= (beams.product_BJ[of_Q, beam_Q] / product_QC.sum(1))[:, None]
    floor_Q1 = asked_Q.rule.floor_B[:, None].astype(np.float64)
    chance_QC = (1 - floor_Q1) * product_QC + floor_Q1 / root.total()[of_Q, None] * count_QC
    return _Look(of_Q, beam_Q, children, product_QC, np.maximum(chance_QC, LEAST) * (count_QC > 0))


def _weights(logits_QC: DoubleArray, count_QC: CountArray) -> DoubleArray:
    """exp(logit - largest legal logit), 0 where nothing is legal, (Q, C); zeros for a walk with nothing legal."""
    weight_QC: DoubleArray = np.where(count_QC > 0, logits_QC, -np.inf)
    weight_QC -= weight_QC.max(1, keepdims=True, initial=-3e38)
    np.exp(weight_QC, out=weight_QC)
    return weight_QC


def _first(trie: Trie, above: _Beams, seen: _Look, time_QC: DoubleArray, keep: int) -> _Beams:
    """The first `keep` to ring among the children of all beams of a request."""
    level, (batch, num_beams), num_children = len(above.prefix), above.time_BJ.shape, time_QC.shape[1]
    time_BJC = np.full((batch, num_beams, num_children), np.inf)
    time_BJC[seen.of_Q, seen.beam_Q] = time_QC
    time_BT = time_BJC.reshape(batch, -1)
    at_BJ = np.argpartition(time_BT, keep - 1, 1)[:, :keep] if keep < time_BT.shape[1] else np.indices(time_BT.shape)[1]
    at_BJ = np.take_along_axis(at_BJ, np.take_along_axis(time_BT, at_BJ, 1).argsort(1, kind="stable"), 1)
    time_BJ = np.take_along_axis(time_BT, at_BJ, 1)
    from_BJ, child_BJ = np.divmod(at_BJ, max(num_children, 1))
    walk_BJ = np.zeros((batch, num_beams), np.int64)
    walk_BJ[seen.of_Q, seen.beam_Q] = np.arange(len(seen.of_Q))
    walk_BJ = np.take_along_axis(walk_BJ, from_BJ, 1)
    alive_BJ = np.isfinite(time_BJ)
    walk_P, child_P = walk_BJ[alive_BJ], child_BJ[alive_BJ]
    node_BJ, product_BJ = np.zeros(at_BJ.shape, np.int64), np.zeros(at_BJ.shape)
    node_BJ[alive_BJ] = np.broadcast_to(seen.children.start_Q, len(seen.of_Q))[walk_P] + child_P
    product_BJ[alive_BJ] = seen.product_QC[walk_P, child_P]
    prefix = [np.take_along_axis(codes_BJ, from_BJ, 1) for codes_BJ in above.prefix]
    if level + 1 < trie.levels:
        prefix.append(trie.codes[level][node_BJ])
    return _Beams(time_BJ, node_BJ, product_BJ, prefix, walk_BJ, child_BJ)


def _clocks(seed_Q: BitArray, children: Children, first_clock: int) -> DoubleArray:
    """An exponential variable of mean 1 for each child, (Q, C)."""
    place_QC = children.start_Q[:, None] + np.arange(children.bound_QX.shape[1] - 1)
    return _exponential(seed_Q[:, None], first_clock + place_QC)


def _times(time_Q: DoubleArray, chance_QC: DoubleArray, clock_QC: DoubleArray) -> DoubleArray:
    """When each child rings first, given when the first of them does; inf for a child that is not legal."""
    wait_QC = np.divide(clock_QC, chance_QC, out=np.full(chance_QC.shape, np.inf), where=chance_QC > 0)
    return time_Q[:, None] + (wait_QC - wait_QC.min(1, keepdims=True, initial=np.inf))


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
    for level in reversed(levels):
        seen = level.seen
        walk_P, child_P = level.beams.walk_BJ[at_B, beam_P], level.beams.child_BJ[at_B, beam_P]
        if level is levels[-1]:
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
