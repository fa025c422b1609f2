"""Trains RecTools' SASRec and writes how long its steps took. A script for an interpreter that has RecTools (rectools_training.py).

Imports nothing of ours and nothing of ours imports it: RecTools and this project can't be installed side by side.
One JSON object comes in on standard input; the last line on standard output is one JSON object.
"""

import json
import logging
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

WARM_UP_STEPS = 3


def main() -> None:
    """Read the job, train, write the figures."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(job["seed"])
    steps = trained(dataset(job["sequences"]), job)
    sys.stdout.write(f"\n{json.dumps(figures(steps))}\n")


def dataset(sequences: list[list[int]]) -> Dataset:
    """The sequences as the table that RecTools reads; the place in a sequence is its time."""
    lengths = [len(items) for items in sequences]
    table = {
        Columns.User: np.repeat(np.arange(len(sequences)), lengths),
        Columns.Item: np.concatenate(sequences),
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.concatenate([np.arange(length) for length in lengths]), unit="s"),
    }
    return Dataset.construct(pd.DataFrame(table))


def trained(data: Dataset, job: dict[str, Any]) -> list[tuple[float, int]]:
    """Seconds and sequences of each training step; making the batches is not in them."""
    steps: list[tuple[float, int]] = []
    started_s: list[float] = []

    # functions, not an object: RecTools copies the trainer and all objects in it
    def start(*_: Any) -> None:
        started_s.append(time.perf_counter())

    def end(trainer: Any, module: Any, outputs: Any, batch: dict[str, torch.Tensor], at: int) -> None:
        steps.append((time.perf_counter() - started_s[-1], len(batch["x"])))

    def trainer() -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=job["epochs"],
            max_steps=job["max_steps"],
            callbacks=[LambdaCallback(on_train_batch_start=start, on_train_batch_end=end)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_factors=job["width"],
        n_blocks=job["layers"],
        n_heads=job["heads"],
        session_max_len=job["length"],
        batch_size=job["batch"],
        loss=job["loss"],
        epochs=job["epochs"],
        # there are no features of items, and asking for them would warn
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    model.fit(data)
    return steps


def figures(steps: list[tuple[float, int]]) -> dict[str, float | int | None]:
    """Of the steps after the first few, which allocate; None where there are no others."""
    timed = steps[WARM_UP_STEPS:]
    seconds, sequences = (sum(values) for values in zip(*timed, strict=True)) if timed else (0.0, 0)
    return {
        "sequences_per_s": sequences / seconds if timed else None,
        "p50_step_ms": 1000 * float(np.median([step_s for step_s, _ in timed])) if timed else None,
        "steps": len(timed),
    }


if __name__ == "__main__":
    main()
