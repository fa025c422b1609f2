"""What really entered the weights: every update is written down, with a fingerprint of the weights before and after it.

Knows nothing of checkpoints, offsets or books, so it can contradict them. What a killed learner had learned and not saved is in
no chain of fingerprints that ends at the final weights; what was learned in the wrong place, or twice, or not at all, shows in it.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.decoder import Decoder
from recsys.features import Lesson
from recsys.trainer import Trainer, Updated


@dataclass(frozen=True)
class Learned:
    """One update."""

    at_s: float
    """Monotonic, the same clock in all processes of a machine."""
    before: str
    after: str
    decision_ids: list[str]
    """The learner's own decisions that were trained as new."""


def keep(path: Path) -> None:
    """From now on this process writes down each update that it makes."""
    learn = Trainer.update
    file = path.open("a", buffering=1)

    def update(self: Trainer, fresh: Sequence[Lesson], replayed: Sequence[Lesson], num_rows: Sequence[int], minute: int) -> Updated:
        before = _print_of(self)
        done = learn(self, fresh, replayed, num_rows, minute)
        if done.refused is None:
            ids = [lesson.decision.decision_id for lesson in fresh if lesson.own]
            learned = Learned(time.monotonic(), before, _print_of(self), ids)
            file.write(json.dumps(asdict(learned)) + "\n")
        return done

    Trainer.update = update  # type: ignore[method-assign]  # the one place that looks over the trainer's shoulder


def read(path: Path) -> list[Learned]:
    """The updates of one life; a last line that the kill cut off counts for nothing, as nothing came of its update."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [Learned(**json.loads(line)) for line in lines]


def in_weights(updates: Iterable[Learned], final: str) -> Counter[str]:
    """How often each decision was learned as new on the way from the first weights to those with the fingerprint `final`."""
    by_after = {learned.after: learned for learned in updates}
    counted: Counter[str] = Counter()
    while (learned := by_after.pop(final, None)) is not None:
        counted.update(learned.decision_ids)
        final = learned.before
    return counted


def fingerprint(decoder: Decoder, steps: Iterable[float]) -> str:
    """SHA-256 of the weights that all items share, and of the most steps a parameter made: new items leave it, any update changes it."""
    rows = {id(parameter) for parameter in decoder.row_parameters()}
    total = hashlib.sha256()
    for parameter in decoder.parameters():
        if id(parameter) not in rows:
            total.update(parameter.detach().numpy().tobytes())
    total.update(repr(max(steps, default=0.0)).encode())
    return total.hexdigest()


def _print_of(trainer: Trainer) -> str:
    return fingerprint(trainer.model.decoder, [float(state["step"]) for state in trainer.optimizer.state.values()])
