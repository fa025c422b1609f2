"""What the benchmarks compare with, run tiny, so that a new version of a foreign library cannot break it unseen.

Unlike all other tests these are skipped where the foreign library isn't installed: the main installation and CI have none of
them. With `pip install -e '.[cpu,test,bench]'` the one about transformers runs; the one about RecTools needs its own
environment, in .venv-rectools or named by RECSYS_RECTOOLS_PYTHON.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.bench.machine import matmul_peak_gflops
from recsys.bench.rectools_training import RecToolsJob, rectools_training

RECTOOLS_PYTHON = Path(os.environ.get("RECSYS_RECTOOLS_PYTHON", Path(__file__).parent.parent / ".venv-rectools/bin/python"))

TINY = RecToolsJob(width=8, layers=1, heads=2, length=4, batch=4, epochs=2)
SEQUENCES = [[user % 5 + step for step in range(6)] for user in range(20)]


def test_slates_of_transformers_are_legal_and_the_same_again() -> None:
    """Skipped without the extra `bench`: CI does not install it, and only a benchmark uses it."""
    pytest.importorskip("transformers")
    from recsys.bench.transformers_slates import TransformersSlates, random_ids  # noqa: PLC0415

    ids_NK = random_ids(60, codes=8, levels=3, seed=0)
    assert len({tuple(id_K) for id_K in ids_NK.tolist()}) == 60
    history_BL = np.random.default_rng(0).integers(0, 60, (3, 5))
    model = TransformersSlates(ids_NK, width=16, layers=2, heads=2, history_length=5, slate=4, seed=0)

    beam_BS, sample_BS = model.beam(history_BL), model.sample(history_BL)
    assert beam_BS.shape == sample_BS.shape == (3, 4)
    torch.rand(1)  # the state of torch's own generator means nothing
    assert (model.beam(history_BL) == beam_BS).all()
    assert (model.beam(history_BL, prompt_once=True) == beam_BS).all()
    assert (model.sample(history_BL) == sample_BS).all()
    with pytest.raises(ValueError, match="4 items, this model reads 5"):
        model.beam(history_BL[:, 1:])


def test_transformers_draws_every_item_of_a_small_catalogue() -> None:
    """A slate as long as the catalogue: branches whose items are all given are closed. Skipped without the extra, as above."""
    pytest.importorskip("transformers")
    from recsys.bench.transformers_slates import TransformersSlates  # noqa: PLC0415

    ids_NK = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1]])
    model = TransformersSlates(ids_NK, width=8, layers=1, heads=1, history_length=1, slate=5, seed=1)
    assert [sorted(items) for items in model.sample(np.array([[0], [3]])).tolist()] == [[0, 1, 2, 3, 4]] * 2


def test_rectools_trains_in_its_own_environment() -> None:
    """Skipped without that environment: CI makes none, and only a benchmark uses it."""
    if not RECTOOLS_PYTHON.exists():
        pytest.skip(f"no RecTools: {RECTOOLS_PYTHON} is not there")
    figures = rectools_training(RECTOOLS_PYTHON, SEQUENCES, TINY)
    assert figures["steps"] == 2 * 20 // 4 - 3
    assert figures["sequences_per_s"] is not None
    assert figures["sequences_per_s"] > 0
    assert figures["p50_step_ms"] is not None
    assert figures["p50_step_ms"] > 0


def test_an_environment_without_rectools_is_named_with_the_way_to_make_one() -> None:
    with pytest.raises(RuntimeError, match="pip install 'rectools"):
        rectools_training(sys.executable, SEQUENCES, TINY)
    with pytest.raises(RuntimeError, match="there is no nowhere/python"):
        rectools_training("nowhere/python", SEQUENCES, TINY)


def test_the_peak_is_measured_and_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    assert matmul_peak_gflops(size=128, seconds=0.01) > 0.01
    assert matmul_peak_gflops(torch.float64, threads=2, size=128, seconds=0.01) > 0.01
    assert torch.get_num_threads() == before
