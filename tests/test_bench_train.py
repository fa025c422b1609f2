"""The training benchmark at toy size: what it prints, and that nothing is said of what was not measured."""

import numpy as np
import pytest
from test_next_item import decoder_model, ring

from models.next_item import NextItemModel
from recsys.bench.train import TrainBench, bench_train, synthetic_sequences


def test_it_prints_rates_shares_and_null_for_what_is_not_there() -> None:
    engines: dict[str, NextItemModel] = {"decoder": decoder_model(), "two levels": decoder_model(2)}
    said = bench_train(ring(60), engines, TrainBench(batch=8, steps=3), None)
    assert [row["engine"] for row in said["rows"]] == ["decoder", "two levels"]
    assert all(row["sequences_per_s"] > 0 and row["p50_step_ms"] > 0 for row in said["rows"])
    assert said["ratio_to_rectools"] is None
    assert 0 < said["gflops"] < said["peak_gflops"]
    assert said["matmul_share"] == pytest.approx(said["gflops"] / said["peak_gflops"])
    shares = [op["share"] for op in said["profile"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1


def test_synthetic_sequences_are_like_those_of_a_shop() -> None:
    sequences = synthetic_sequences(2_000, 500, 0)
    lengths, counts = np.array([len(rows) for rows in sequences]), np.bincount(np.concatenate(sequences), minlength=501)
    assert len(sequences) == 2_000
    assert lengths.min() >= 5
    assert lengths.max() <= 50
    assert counts[0] == 0
    assert counts[1:11].sum() > counts[251:].sum()
    again = synthetic_sequences(2_000, 500, 0)
    assert all((one == other).all() for one, other in zip(sequences, again, strict=True))
