"""How fast sequences are learned, and what share of the machine that is: the decoder, our SASRec, and RecTools' SASRec.

All train the next item at every place, over the whole catalogue, at equal width, depth, length and batch. Knows nothing of quality.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models.device import Device
from models.next_item import FitConfig, NextItemModel, Windows, learn, optimizer_of
from models.trie import IntArray
from recsys.bench.machine import matmul_peak_gflops
from recsys.bench.rectools_training import RecToolsJob, rectools_training

WARM_UP_STEPS = 3
MATMULS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu"}


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Sizes for all engines."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    length: int = 20
    batch: int = 128
    steps: int = 40
    seed: int = 0
    device: Device = field(default_factory=Device)
    """Of our engines."""

    def settings(self) -> list[str]:
        """As settings of a model's configuration."""
        return [f"width={self.width}", f"layers={self.layers}", f"heads={self.heads}", f"history={self.length}"]


def synthetic_sequences(num_users: int, num_items: int, seed: int) -> list[IntArray]:
    """Users of 5 to 50 events, few of many; items by Zipf's law."""
    random = np.random.default_rng(seed)
    chance = 1 / np.arange(1, num_items + 1)
    lengths = np.minimum(4 + random.geometric(0.2, num_users), 50)
    events = 1 + random.choice(num_items, int(lengths.sum()), p=chance / chance.sum())
    return np.split(events, np.cumsum(lengths)[:-1])


def bench_train(sequences: Sequence[IntArray], models: dict[str, NextItemModel], sizes: TrainBench, python: Path | None) -> dict[str, Any]:
    """The keys of `recsys bench train --json`. `models` by engine; the first is the one that ratios are of.

    Without `python`, an interpreter with RecTools, its row and the ratio are null.
    """
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        with sizes.device.visit(model.module):
            rows.append({"engine": name} | timed_steps(model, sequences, sizes))
    first = next(iter(models.values()))
    with sizes.device.visit(first.module):
        shares = matmul_share(first, sequences, sizes)
    foreign = None
    if python is not None:
        job = RecToolsJob(
            width=sizes.width, layers=sizes.layers, heads=sizes.heads, length=sizes.length, batch=sizes.batch, max_steps=sizes.steps
        )
        foreign = rectools_training(python, [rows.tolist() for rows in sequences], job)
        rows.append({"engine": "rectools SASRec", "sequences_per_s": foreign["sequences_per_s"], "p50_step_ms": foreign["p50_step_ms"]})
    ours = rows[0]["sequences_per_s"]
    theirs = foreign["sequences_per_s"] if foreign else None
    return {
        "rows": rows,
        "ratio_to_rectools": ours / theirs if theirs else None,
        **shares,
        "sequences": len(sequences),
    }


def timed_steps(model: NextItemModel, sequences: Sequence[IntArray], sizes: TrainBench) -> dict[str, float]:
    """Sequences a second and the median step, after a few steps that do not count. Making batches counts."""
    config = FitConfig(batch=sizes.batch)
    optimizer = optimizer_of(model.module, config)
    model.module.train()
    times_s = []
    begun = time.perf_counter()
    for number, (item_BL, target_BL) in enumerate(_batches(model, sequences, sizes, WARM_UP_STEPS + sizes.steps)):
        learn(model, optimizer, config, 1 + number, item_BL, target_BL)
        times_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    counted = times_s[WARM_UP_STEPS:]
    return {"sequences_per_s": sizes.batch * len(counted) / sum(counted), "p50_step_ms": 1000 * float(np.median(counted))}


def matmul_share(model: NextItemModel, sequences: Sequence[IntArray], sizes: TrainBench) -> dict[str, Any]:
    """Which share of the time its products would need at this machine's peak, by the precision the model works in; and where time goes."""
    config = FitConfig(batch=sizes.batch)
    optimizer = optimizer_of(model.module, config)
    model.module.train()
    batches = list(_batches(model, sequences, sizes, 13))
    for number, batch in enumerate(batches[:3]):
        learn(model, optimizer, config, 1 + number, *batch)
    with FlopCounterMode(display=False) as counted:
        for batch in batches[3:]:
            learn(model, optimizer, config, 4, *batch)
    begun = time.perf_counter()
    for batch in batches[3:]:
        learn(model, optimizer, config, 4, *batch)
    seconds = time.perf_counter() - begun
    peak = matmul_peak_gflops(torch.float32, size=1536 if sizes.device.name == "cpu" else 8192)
    reached = counted.get_total_flops() / seconds / 1e9
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for batch in batches[3:]:
            learn(model, optimizer, config, 4, *batch)
    return {"matmul_share": reached / peak, "gflops": reached, "peak_gflops": peak, "profile": _profile(watched)}


def _profile(watched: Any) -> list[dict[str, Any]]:
    """The operations that take most of the time, with their shares of it."""
    events = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [{"op": event.key.removeprefix("aten::"), "share": event.self_cpu_time_total / total} for event in events[:10]]


def _batches(model: NextItemModel, sequences: Sequence[IntArray], sizes: TrainBench, number: int) -> list[tuple[IntArray, IntArray]]:
    windows = Windows.of(sequences, model.history)
    random = np.random.Generator(np.random.PCG64(sizes.seed))
    epochs = (windows.batches(sizes.batch, random) for _ in repeat(None))
    return list(islice(chain.from_iterable(epochs), number))
