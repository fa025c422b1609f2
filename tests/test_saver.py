"""A save goes on beside what comes next, as of the moment it began; what becomes of it is told, once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from recsys.bench.checkpoint import checkpoint_cost
from recsys.saver import SaveFailed, Saver
from tests.runs import ROOT

ORPHANED = """
import sys, time
from pathlib import Path
from recsys.saver import Saver

def save():
    (Path(sys.argv[1]) / "begun").touch()
    time.sleep(1)
    (Path(sys.argv[1]) / "ended").touch()
    return {}

Saver(beside=True).start(save)
time.sleep(60)
"""


@pytest.mark.parametrize("beside", [True, False])
def test_what_is_saved_is_as_of_the_beginning(tmp_path: Path, beside: bool) -> None:
    saver, values = Saver(beside=beside), np.zeros(10_000)

    def save() -> Mapping[str, float]:
        if beside:
            while not (tmp_path / "changed").exists():
                time.sleep(0.005)
        np.save(tmp_path / "values", values)
        return {"sum": float(values.sum())}

    assert saver.finished(wait=True) is None
    saver.start(save)
    if beside:
        assert saver.finished() is None
    values += 1
    (tmp_path / "changed").touch()
    assert saver.finished(wait=True) == {"sum": 0}
    assert saver.finished(wait=True) is None
    assert not np.load(tmp_path / "values.npy").any()


def test_why_a_save_failed_is_told_once_and_the_next_can_begin() -> None:
    def fail() -> Mapping[str, float]:
        raise OSError("no space left")

    def die() -> Mapping[str, float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    saver = Saver(beside=True)
    for save, said in ((fail, "no space left"), (die, "ended by signal 9")):
        saver.start(save)
        with pytest.raises(SaveFailed, match=said):
            saver.finished(wait=True)
        assert saver.finished() is None
    saver.start(lambda: {"seconds": 1})
    assert saver.finished(wait=True) == {"seconds": 1}


def test_where_no_copy_can_be_made_it_is_said_and_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no more processes")

    saver, open_before = Saver(beside=True), len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refuse)
        with pytest.raises(BlockingIOError, match="no more processes"):
            saver.start(lambda: {"seconds": 1})
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert saver.finished(wait=True) is None
    saver.start(lambda: {"seconds": 1})
    assert saver.finished(wait=True) == {"seconds": 1}


def test_a_copy_dies_with_its_original(tmp_path: Path) -> None:
    original = subprocess.Popen([sys.executable, "-c", ORPHANED, str(tmp_path)], cwd=ROOT)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    original.kill()
    original.wait()
    time.sleep(2)
    assert not (tmp_path / "ended").exists()


def test_the_cost_of_a_checkpoint_is_measured_with_all_that_is_in_one(tmp_path: Path) -> None:
    cost = checkpoint_cost(tmp_path, num_open=2_000, runs=1, width=32)
    assert 0 < cost["checkpoint_block_ms"] / 1000 < cost["checkpoint_s"]
    assert cost["checkpoint_mb"] > 3 * cost["model_mb"] > 0
