"""What generating costs, with random weights on one thread: by way and batch, by size of the catalogue, under filters, by history.

Knows nothing of how well anything is chosen. Every figure is a median (or 99th percentile) of real runs after a few that are
not counted. Beside our tree stand what others do with the same state: a softmax over all items, and an IVF index with a ranker.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch

from models.cache import Reading
from models.content import FloatArray
from models.decoder import Context, Decoder, DecoderConfig
from models.generate import WAYS, Generator
from models.inference import FrozenDecoder, LeafVectors
from models.successors import Successors
from models.trie import IntArray, Legal, Trie
from models.walk import Rule

LEVELS, CODES, NUM_KINDS, CONTENT, FOLLOWERS = 3, 256, 16, 32, 4
SLATE = 10
WARM_UP = 5
NPROBE, CANDIDATES = 16, 500
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Subject:
    """A generator with random weights over random ids, and how long its tree took."""

    generator: Generator
    build_s: float

    @staticmethod
    def of(items: int, *, width: int = 64, layers: int = 2, history: int = 64, levels: int = LEVELS, codes: int = CODES) -> "Subject":
        """The item vectors are drawn where they stay, so that 10⁷ of them fit into memory once."""
        random = np.random.default_rng(0)
        ids_NK = np.zeros((items, levels), np.int32)
        ids_NK[:, :-1] = random.integers(0, codes, (items, levels - 1), np.int32)
        started = time.perf_counter()
        trie = Trie.built(ids_NK, np.zeros(items, bool))
        build_s = time.perf_counter() - started
        torch.manual_seed(0)
        config = DecoderConfig(width=width, layers=layers, history=history)
        centroids = [0.1 * random.standard_normal((codes, CONTENT), np.float32) for _ in range(levels - 1)]
        decoder = Decoder(config, centroids=centroids, content_RC=torch.zeros(1, CONTENT), num_kinds=NUM_KINDS).eval()
        with torch.no_grad():  # a version that has learned of repeats, successors and likeness: all of it is computed
            for weights in (decoder.repeat, decoder.follow, decoder.match):
                weights.normal_(std=0.01)
        vector_FD = random.standard_normal((items + 1, width), np.float32)
        inverse_F = 1 / np.sqrt(np.vecdot(vector_FD, vector_FD))
        content_FC = np.resize(random.standard_normal((min(items, 100_000) + 1, CONTENT), np.float32), (items + 1, CONTENT))
        nothing_F = np.zeros(items + 1, np.float32)
        leaves = LeafVectors(vector_FD, inverse_F, nothing_F, nothing_F, content_FC, trie.leaf_of_item)
        frozen = FrozenDecoder(decoder, leaves)
        return Subject(Generator(frozen, trie, np.ones(items + 1, np.float32), _successors(random, items)), build_s)

    @property
    def trie(self) -> Trie:
        """Its tree."""
        return self.generator.trie

    def context(self, random: np.random.Generator, batch: int) -> Context:
        """Users with a full history."""
        shape, items = (batch, self.generator.decoder.history), self.trie.num_items
        item_BL, kind_BL, gap_BL = (random.integers(low, high, shape) for low, high in ((1, items + 1), (1, NUM_KINDS), (0, 16)))
        return Context(item_BL, kind_BL, gap_BL, random.integers(1, 512, (batch, 2)))

    def drawing(self, batch: int, way: str, slate: int = SLATE, legal: Callable[[], Legal] | None = None) -> Callable[[], object]:
        """Draws slates for other users each time."""
        random = np.random.default_rng(1)
        rule, sizes_B = _rule(batch), np.full(batch, slate)
        contexts = [self.context(random, batch) for _ in range(8)]
        everything = Legal.of(self.trie, [NOTHING] * batch, [None] * batch)

        def draw() -> object:
            uniform_BSU = random.random((batch, slate, self.trie.levels + 1), dtype=np.float32)
            context = contexts[int(random.integers(len(contexts)))]
            return self.generator.draw(context, legal() if legal else everything, rule, uniform_BSU, sizes_B, way=way)

        return draw


def _successors(random: np.random.Generator, items: int) -> Successors:
    """A few of every item."""
    rows_P = random.integers(1, items + 1, FOLLOWERS * items, np.int32)
    return Successors(np.maximum(FOLLOWERS * (np.arange(items + 2) - 1), 0), rows_P, np.ones(len(rows_P), np.float32))


def our_slates(
    *, width: int = 64, layers: int = 2, items: int = 7_000, history: int = 64, slate: int = SLATE, codes: int = 64, runs: int = 200
) -> list[dict[str, Any]]:
    """Rows {way, batch, slates_per_s, p50_ms, p99_ms}; the times are those of a batch."""
    subject = Subject.of(items, width=width, layers=layers, history=history, codes=codes)
    rows = []
    for way in WAYS:
        for batch in (1, 32):
            took_ms = _times_ms([subject.drawing(batch, way, slate)], max(runs if batch == 1 else runs // 8, 3))[0]
            rows.append(_row(way, batch, took_ms))
    return rows


def beside_transformers(runs: int, seed: int) -> dict[str, Any]:
    """Rows of ours and of `generate` of transformers at the same sizes, and the ratios of slates a second.

    `ratio_to_hf` is against its beam search as it is called; `ratio_to_hf_prompt_once` against the same with the prompt read once
    for all beams, which takes knowing how.
    """
    sizes = {"width": 128, "layers": 4, "items": 12_000, "history": 50, "codes": 64}
    rows = [{"engine": "ours"} | row for row in our_slates(**sizes, runs=runs)]
    rows += [{"engine": "transformers"} | row for row in _transformers_rows(sizes, max(runs // 5, 3), seed)]
    rate = {(row["way"], row["batch"]): row["slates_per_s"] for row in rows}
    ratios = {
        key: {f"{way}@{batch}": rate[way, batch] / rate[theirs, batch] for way in WAYS for batch in (1, 32)}
        for key, theirs in (("ratio_to_hf", "beam search"), ("ratio_to_hf_prompt_once", "beam search, prompt once"))
    }
    return {"rows": rows, **ratios}


def _transformers_rows(sizes: dict[str, int], runs: int, seed: int) -> list[dict[str, Any]]:
    """Beam search with as many beams as slots, and sampling item after item, held to the catalogue."""
    from recsys.bench.transformers_slates import TransformersSlates, random_ids  # noqa: PLC0415  its library may not be there

    ids_NK = random_ids(sizes["items"], sizes["codes"], LEVELS, seed)
    slates = TransformersSlates(
        ids_NK, width=sizes["width"], layers=sizes["layers"], heads=4, history_length=sizes["history"], slate=SLATE, seed=seed
    )
    random = np.random.default_rng(seed)
    rows = []
    for batch in (1, 32):
        history_BL = random.integers(0, sizes["items"], (batch, sizes["history"]))
        ways: dict[str, Callable[[], object]] = {
            "beam search": lambda: slates.beam(history_BL),  # noqa: B023  called at once
            "beam search, prompt once": lambda: slates.beam(history_BL, prompt_once=True),  # noqa: B023
            "sampling": lambda: slates.sample(history_BL),  # noqa: B023
        }
        times = _times_ms(list(ways.values()), runs if batch == 1 else max(runs // 5, 3), warm_up=1)
        rows += [_row(way, batch, took_ms) for way, took_ms in zip(ways, times, strict=True)]
    return rows


def _row(way: str, batch: int, took_ms: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(took_ms, [50, 99]).tolist()
    return {"way": way, "batch": batch, "slates_per_s": 1000 * batch / p50, "p50_ms": p50, "p99_ms": p99}


def catalogue_growth(sizes: Sequence[int], *, compare_up_to: int = 1_000_000, runs: int = 200) -> list[dict[str, Any]]:
    """Rows {items, p50_ms, beam_p50_ms, trie_bytes_per_item, build_s}, batch 1, all sizes measured in turn; what others need up to one.

    `flat_*` is one softmax over all items (the same code with one level), slot by slot and drawn at once; `ivf_p50_ms` a search for
    candidates in a faiss IVF index and a ranker of the same width on each of them, `ivf_build_s` what the index takes.
    """
    subjects = {items: Subject.of(items) for items in sizes}
    medians_ms = _medians_ms([subject.drawing(1, way) for subject in subjects.values() for way in WAYS], runs)
    rows = []
    for (items, subject), slot_ms, beam_ms in zip(subjects.items(), medians_ms[::2], medians_ms[1::2], strict=True):
        row = {"items": items, "p50_ms": slot_ms, "beam_p50_ms": beam_ms, "build_s": subject.build_s}
        row["trie_bytes_per_item"] = subject.trie.num_bytes / items
        if items <= compare_up_to:
            row |= _ivf(subject, runs)
            flat = Subject.of(items, levels=1)
            flat_runs = max(min(runs, 10_000_000 // items), 5)
            row["flat_p50_ms"], row["flat_beam_p50_ms"] = _medians_ms([flat.drawing(1, way) for way in WAYS], flat_runs)
        rows.append(row)
    return rows


def filters(items: int, *, runs: int = 200) -> dict[str, Any]:
    """Medians of a slate, batch 1: unfiltered; a `where` that keeps 1 %; 500 candidates; 1,000 exclusions. Measured in turn.

    The leaves of a `where` are kept by the version that serves; candidates and exclusions are looked up by each request.
    """
    subject = Subject.of(items)
    trie, random = subject.trie, np.random.default_rng(2)
    where_F = trie.live_leaves(random.integers(1, items + 1, items // 100))

    def rows(count: int) -> IntArray:
        return random.integers(1, items + 1, count)

    legal: dict[str, Callable[[], Legal]] = {
        "unfiltered": lambda: Legal.of(trie, [NOTHING], [None]),
        "where": lambda: Legal.of(trie, [NOTHING], [where_F]),
        "candidates": lambda: Legal.of(trie, [NOTHING], [trie.live_leaves(rows(500))]),
        "exclusions": lambda: Legal.of(trie, [trie.live_leaves(rows(1000))], [None]),
    }
    figures: dict[str, Any] = {"items": items}
    for way in WAYS:
        medians = _medians_ms([subject.drawing(1, way, legal=one) for one in legal.values()], runs)
        figures |= {f"{way}_{name}_p50_ms": median for name, median in zip(legal, medians, strict=True)}
    return figures


def history_growth(lengths: Sequence[int], *, items: int = 7_000, runs: int = 100) -> list[dict[str, Any]]:
    """Rows {length, append_ms, cached_slate_ms, fresh_slate_ms}, batch 1: keys and values of a user kept, or made anew."""
    rows = []
    for length in lengths:
        subject = Subject.of(items, history=length)
        generator, random = subject.generator, np.random.default_rng(3)
        context = subject.context(random, 1)
        kept, row_31 = Reading(generator.decoder), np.array([[1], [1], [0]])
        kept.read(np.concatenate([context.item_BL, context.kind_BL, context.gap_BL]))
        legal, rule, size_B = Legal.of(subject.trie, [NOTHING], [None]), _rule(1), np.array([SLATE])
        uniform_BSU = random.random((1, SLATE, LEVELS + 1), dtype=np.float32)
        cached, fresh = _medians_ms(
            [
                lambda: generator.draw(context, legal, rule, uniform_BSU, size_B, memory=kept.memory()),  # noqa: B023  called at once
                lambda: generator.draw(context, legal, rule, uniform_BSU, size_B),  # noqa: B023
            ],
            runs,
        )
        (append,) = _medians_ms([lambda: kept.read(row_31)], runs)  # noqa: B023
        rows.append({"length": length, "append_ms": append, "cached_slate_ms": cached, "fresh_slate_ms": fresh})
    return rows


def _ivf(subject: Subject, runs: int) -> dict[str, float]:
    """A slate the usual way: the state of the request, its nearest items by an index, a ranker on these, the best of them."""
    decoder, random = subject.generator.decoder, np.random.default_rng(4)
    leaves = decoder.leaves
    unit_FD = leaves.vector_FD[:-1] * leaves.inverse_F[:, None][:-1]
    num_lists = max(1, int(len(unit_FD) ** 0.5))
    faiss.omp_set_num_threads(1)
    started = time.perf_counter()
    quantizer = faiss.IndexFlatIP(decoder.width)
    index = faiss.IndexIVFFlat(quantizer, decoder.width, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    index.train(unit_FD[: 64 * num_lists])
    index.add(unit_FD)
    build_s = time.perf_counter() - started
    index.nprobe = NPROBE
    hidden_2DD, out_D = (random.standard_normal(shape, np.float32) for shape in ((2 * decoder.width, decoder.width), decoder.width))
    contexts = [subject.context(random, 1) for _ in range(8)]

    def slate() -> FloatArray:
        context = contexts[int(random.integers(len(contexts)))]
        memory = decoder.memory(context)
        state_1D = decoder.state(memory, decoder.slots(memory, 1), decoder.slot_input(decoder.start(memory, context), 0), 0)
        _, found = index.search(state_1D, CANDIDATES)
        item_AD = leaves.vector_FD[found[0]]
        both_A2D = np.concatenate([np.broadcast_to(state_1D, item_AD.shape), item_AD], 1)
        score_A: FloatArray = np.maximum(both_A2D @ hidden_2DD, 0) @ out_D
        return found[0][np.argsort(-score_A)[:SLATE]]

    return {"ivf_p50_ms": _medians_ms([slate], runs)[0], "ivf_build_s": build_s}


def _rule(batch: int) -> Rule:
    return Rule(*(np.full(batch, value, np.float32) for value in (0.35, 0.02, 0.5, 1.0)))


def _medians_ms(works: Sequence[Callable[[], object]], runs: int) -> list[float]:
    return [float(np.median(took_ms)) for took_ms in _times_ms(works, runs)]


def _times_ms(works: Sequence[Callable[[], object]], runs: int, warm_up: int = WARM_UP) -> list[list[float]]:
    """Times of each work, taken in turn, so that whatever else the machine does meets all of them alike."""
    took_ms: list[list[float]] = [[] for _ in works]
    for run in range(warm_up + runs):
        for work, times in zip(works, took_ms, strict=True):
            started = time.perf_counter()
            work()
            if run >= warm_up:
                times.append(1000 * (time.perf_counter() - started))
    return took_ms
