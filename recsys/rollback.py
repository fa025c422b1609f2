"""Undoing what was learned of bad records: the serving pointer goes back at once, and the log tells the learner to follow.

A pointer alone would be overwritten by the poisoned learner a minute later. Knows nothing of how the learner does its part.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.artifact import BadArtifact, verified_manifest
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.blobs import below
from recsys.controls import CONTROL_PARTITION, Rollback, Span, Undoing, undoing, undone_of
from recsys.memory import refuse_another
from recsys.publisher import Awaited
from streaming.events import encode
from streaming.log import Entry, EventLog, Position


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did. Nothing is learned from decisions of `spans`; the Control that says so stands at `position`."""

    version: int
    from_version: int
    spans: tuple[Span, ...]
    position: Position


def roll_back(log: EventLog, variant_dir: Path, version: int | None, now_ms: int) -> RolledBack:
    """Serve `version` (None: the last good one) and have the learner go on from it, without what came after it up to now.

    ValueError when that version has no checkpoint any more, was undone before, or there is none to go back to, or the log is not the one it
    was learned of; BadArtifact when it is not there whole. Then nothing is changed.
    """
    if not variant_dir.is_dir():
        raise ValueError(f"{variant_dir} holds no versions")
    with publisher.pointing(variant_dir):  # until it is pointed to a learner may delete it for its age
        last_good = publisher.last_good(variant_dir)
        if version is None:
            if last_good is None:
                raise ValueError(f"{variant_dir} has no version before the current one; name one with --to")
            version = last_good.policy_version
        _refuse_undone(variant_dir, version)
        saved = checkpoints.load(variant_dir / "checkpoints", version)
        refuse_another(log, below("memory", saved.arrays), f"version {version}")
        facts = verified_manifest(variant_dir / "versions" / str(version))["facts"]
        begins = saved.state["not_learned_from"]
        from_version = publisher.newest_version(variant_dir)
        ends = log.end_offsets()
        spans = tuple(Span(partition, begin, end) for partition, (begin, end) in enumerate(zip(begins, ends, strict=True)))
        rollback = Rollback(version, spans, variant_dir.name, saved.state["behavior_digest"], int(facts["trained_through_ms"]))
        value = encode(rollback.control(now_ms), now_ms)
        # first: a pointer alone would be moved on by a learner that knows nothing of it
        (position,) = log.append([Entry(b"", value, CONTROL_PARTITION)])
        publisher.roll_back(variant_dir, Awaited(version, position.offset), now_ms)
    return RolledBack(version, from_version, spans, position)


def _refuse_undone(variant_dir: Path, version: int) -> None:
    """ValueError for a version behind one that somebody went back to before: with it, what was undone would come back."""
    said, pointed = checkpoints.newest_state(variant_dir / "checkpoints"), None
    with suppress(BadArtifact):
        pointed = publisher.current(variant_dir)
    undone = undone_of(said.get("controls", {}))
    if pointed is not None:  # and what the learner has not come to yet, or not saved
        undone.append(Undoing(pointed.policy_version, pointed.rolled_back_from))
        undone += [Undoing(one.version, publisher.newest_version(variant_dir)) for one in pointed.awaited]
    if (by := undoing(version, undone)) is not None:
        others = f"{by.version} and those before it, or one above {by.newest}"
        raise ValueError(f"version {version} was undone by a rollback to version {by.version}; what can be gone back to is {others}")
