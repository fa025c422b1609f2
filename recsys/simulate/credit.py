"""Whether only own choices earn credit: a log and the same log with ten times as much of others in it must make the same weights.

Knows nothing of how weights are made.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import Learning
from streaming.events import Decision, Event, Exposure, Feedback, Interaction, Record, decode, encode
from streaming.log import Entry, EventLog, MemoryLog

STRANGERS = 10
"""Decisions of another variant, each shown and clicked, for every own one."""


def credit(beginning: Beginning, directory: Path) -> dict[str, Any]:
    """Play `online`, then let two learners read its log: as it is, and enriched. Digests of the weights of all three."""
    stage = Stage(beginning, "online", beginning.config, directory / "played")
    figures = Run(stage, Learning(stage)).play().figures
    history = beginning.log.end_offsets()[0]
    enriched = enriched_log(stage.log, history)
    digests = {
        "played": str(figures["weights_digest"]),
        "read_again": _learned(stage, stage.log, directory / "again"),
        "enriched": _learned(stage, enriched, directory / "enriched"),
    }
    return {
        "records": stage.log.end_offsets()[0],
        "records_enriched": enriched.end_offsets()[0],
        "records_of_history": history,
        "weights_identical": len(set(digests.values())) == 1,
        "digests": digests,
    }


def enriched_log(log: EventLog, first: int) -> MemoryLog:
    """A log of one partition with, from offset `first` on, others' decisions and feedback, forged and orphan feedback, and what
    strangers did on their own. What own decisions say of offsets is said of the same records.
    """
    enriched, moved = MemoryLog(1), [0]
    for record in log.read(0, 0, log.end_offsets()[0]):
        told = decode(record.value)
        own = told.WhichOneof("body") == "decision" and record.offset >= first
        if own and told.decision.memory_offset >= 0:
            told.decision.memory_offset = moved[told.decision.memory_offset]
        enriched.append([Entry(record.key, told.SerializeToString(deterministic=True), 0)])
        if own:
            enriched.append([Entry(b"", value, 0) for value in _foreign(told)])
        moved.append(enriched.end_offsets()[0])
    return enriched


def _foreign(told: Record) -> Iterator[bytes]:
    """What others do around one own decision."""
    own, now_ms = told.decision, told.append_time_ms
    for number in range(STRANGERS):
        user_id, name = f"stranger {number}", f"{own.decision_id}-{number}"
        other = Decision()
        other.CopyFrom(own)
        other.decision_id, other.user_id, other.variant, other.decision_token = name, user_id, "other", f"{name}.x"
        yield encode(other, now_ms)
        shown = Exposure(decision_token=other.decision_token, slots=range(len(own.item_ids)))
        yield encode(Event(event_id=f"{name} e", user_id=user_id, event_time_ms=own.event_time_ms, exposure=shown), now_ms)
        for kind, token in (("click", other.decision_token), ("like", f"{own.decision_id}.forged"), ("click", f"nobody-{name}.x")):
            said = Feedback(decision_token=token, slot=number % max(len(own.item_ids), 1), kind=kind, value=1)
            yield encode(Event(event_id=f"{name} {token}", user_id=user_id, event_time_ms=own.event_time_ms, feedback=said), now_ms)
        watched = Interaction(item_id=own.item_ids[0] if own.item_ids else "", kind="watch", value=1)
        yield encode(Event(event_id=f"{name} o", user_id=user_id, event_time_ms=own.event_time_ms, interaction=watched), now_ms)


def _learned(stage: Stage, log: EventLog, directory: Path) -> str:
    """The digest of the weights that a learner makes of a log, going on from the beginning."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(stage.beginning.directory / stage.beginning.config.join.variant, directory / stage.variant)
    learner = stage.beginning.learner(stage.config, stage.clock, log, stage.items_log, directory)
    learner.catch_up()
    learner.close()
    return str(learner.weights_digest())
