"""Toy runs of the whole loop, for the tests of it: real gRPC, a real log, real updates, world time by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

from recsys.config import Config, behavior_digest, with_settings
from recsys.learner import Learner
from recsys.loop import Loop, Stage, toy_scene
from recsys.presets import tiny
from recsys.trainer import Seeds
from streaming.clock import ManualClock
from streaming.log import EventLog, MemoryLog

ROOT = Path(__file__).parent.parent
THREE_WAY = 'experiment.variants=[["online",0.4],["offline",0.3],["random",0.3]]'


def toy_loop(state_dir: Path, minutes: int, seed: int = 0, settings: Sequence[str] = (), stage: Stage | None = None) -> Loop:
    """A loop over the toy world, not yet run."""
    config = with_settings(tiny(), settings)
    stage = stage or Stage(log=MemoryLog(4), items_log=MemoryLog(1), state_dir=state_dir)
    return Loop(config, toy_scene(minutes, seed), stage, seed)


def finished(state_dir: Path, minutes: int, seed: int = 0, settings: Sequence[str] = ()) -> Loop:
    """The same, run to its end and closed."""
    loop = toy_loop(state_dir, minutes, seed, settings)
    for _ in loop.minutes():
        pass
    loop.close()
    return loop


def caught_up(config: Config, log: EventLog, items_log: EventLog, state_dir: Path, seed: int = 0) -> Learner:
    """A learner that has learned all of these logs, and is closed."""
    learner = Learner(
        config.learner,
        config.model,
        config.join,
        config.memory,
        Seeds(behavior_digest(config), seed),
        clock=ManualClock(0),
        log=log,
        items_log=items_log,
        state_dir=state_dir,
    )
    learner.catch_up()
    learner.close()
    return learner


def learned(config: Config, log: EventLog, items_log: EventLog, state_dir: Path, seed: int = 0) -> str:
    """The digest of the weights that a learner makes of these logs."""
    digest = caught_up(config, log, items_log, state_dir, seed).weights_digest()
    assert digest is not None
    return digest


def only_object(output: str) -> dict[str, object]:
    """The one JSON object that standard output holds, and nothing else."""
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1, output
    found: dict[str, object] = json.loads(lines[0])
    return found
