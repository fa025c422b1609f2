"""What a checkpoint costs a learner with many open decisions: how long learning stands still, and how long until all is on disk.

Knows nothing of learning: the state is made to size, and saved by the code that learners save with.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from models.decoder import DecoderConfig
from models.tokenizer import TokenizerConfig
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.blobs import under
from recsys.catalogue import Catalogue
from recsys.checkpoint import Checkpoint
from recsys.live_model import LiveModel, ModelConfig
from recsys.memory import Memory, MemoryConfig
from recsys.saver import Figures, Saver
from streaming.events import Decision, Item, ItemChange, encode
from streaming.joiner import JoinConfig, Joiner
from streaming.log import LogRecord

START_MS = 1_700_000_000_000
ITEMS, SLOTS, USERS, BATCH = 1_000, 10, 100_000, 10_000
WIDTH, LAYERS = 512, 8


def checkpoint_cost(directory: Path, num_open: int = 1_000_000, runs: int = 3, width: int = WIDTH) -> dict[str, float]:
    """Save a learner whose joiner and memory hold `num_open` decisions of ten slots; at width 512 its weights are about 100 MB.

    Medians over `runs`: `checkpoint_block_ms`, for how long learning stands still; `checkpoint_s`, until checkpoint and version are on
    disk. Beside them `checkpoint_alone_s`, the same without a copy of the process; `touch_ms` and `touch_after_fork_ms`, the time to
    change all weights and moments once, usually and while the copy shares their pages; `model_mb`, `checkpoint_mb`.
    """
    model, (joiner, memory) = _model(width), _open_decisions(num_open)
    weights = [parameter.data for parameter in model.decoder.parameters()]
    moments = {f"{at}.{name}": torch.zeros_like(one) for at, one in enumerate(weights) for name in ("exp_avg", "exp_avg_sq")}

    def write(number: int) -> Figures:
        arrays = under("memory", memory.arrays()) | under("optimizer", {name: one.numpy() for name, one in moments.items()})
        saved = Checkpoint(number, {}, joiner.snapshot(), arrays, model.artifact({}))
        checkpoints.save(directory / "checkpoints", saved, lambda: None)
        publisher.publish(model.artifact({"policy_version": number}), directory, 0)
        return {}

    def touch() -> float:
        return _seconds(lambda: [one.add_(1e-9) for one in (*weights, *moments.values())])

    saver, usual_s, blocked_s, touched_s, whole_s = Saver(beside=True), [touch() for _ in range(runs)], [], [], []
    for number in range(1, runs + 1):
        began_s = time.perf_counter()
        blocked_s.append(_seconds(partial(saver.start, partial(write, number))))
        touched_s.append(touch())
        saver.finished(wait=True)
        whole_s.append(time.perf_counter() - began_s)
    alone_s = _seconds(partial(write, runs + 1))
    newest = directory / "checkpoints" / f"ckpt-{runs + 1}"
    return {
        "checkpoint_block_ms": 1000 * median(blocked_s),
        "checkpoint_s": median(whole_s),
        "checkpoint_alone_s": alone_s,
        "touch_ms": 1000 * median(usual_s),
        "touch_after_fork_ms": 1000 * median(touched_s),
        "model_mb": sum(one.numel() * one.element_size() for one in weights) / 1e6,
        "checkpoint_mb": sum(path.stat().st_size for path in newest.rglob("*.*")) / 1e6,
    }


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _model(width: int) -> LiveModel:
    catalogue = Catalogue()
    for offset in range(ITEMS):
        catalogue.apply(offset, ItemChange(item=Item(item_id=f"item {offset}", title=f"A film called {offset}")))
    config = ModelConfig(tokenizer=TokenizerConfig(codes=32), decoder=DecoderConfig(width=width, layers=LAYERS, heads=8))
    return LiveModel.built(config, catalogue, MemoryConfig(), 0, np.zeros((0, 2), np.int64))


def _open_decisions(count: int) -> tuple[Joiner, Memory]:
    """A joiner and a memory to which so many decisions were told, within one second: all of them are open."""
    joiner, memory = Joiner(JoinConfig(variant="online"), 1), Memory(MemoryConfig(), 1)
    for first in range(0, count, BATCH):
        records = [LogRecord(0, offset, b"", _decided(offset, count)) for offset in range(first, min(first + BATCH, count))]
        joiner.apply(0, records)
        memory.read(records)
    return joiner, memory


def _decided(offset: int, count: int) -> bytes:
    first = offset * 7 % (ITEMS - SLOTS)
    made = Decision(
        decision_id=f"{offset:032x}",
        decision_token=f"{offset:032x}.signed",
        user_id=f"user {offset % USERS}",
        event_time_ms=START_MS + offset * 1000 // count,
        variant="online",
        policy_version=1,
        item_ids=[f"item {number}" for number in range(first, first + SLOTS)],
        slot_logprobs=[-3.0] * SLOTS,
    )
    return encode(made, made.event_time_ms)
