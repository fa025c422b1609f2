"""A joiner's state as protobuf messages and back. Knows the joiner's data, none of its rules."""

from streaming.books import Ledger, Quarantined
from streaming.events import Decision, Event
from streaming.partition_join import Gone, PartitionJoin, Waiting
from streaming.proto.joiner_pb2 import (
    ExampleState,
    KindState,
    LedgerState,
    OpenState,
    PartitionState,
    QuarantinedState,
)
from streaming.window import Example, JoinConfig, OpenDecision, Said


def write_partition(join: PartitionJoin, state: PartitionState) -> None:
    """Fill an empty `state` with all that `partition_of` needs, in an order that depends on the join's state alone.

    In place, because protobuf copies whole messages when it is handed finished ones.
    """
    state.next_offset, state.watermark_ms = join.next_offset, join.watermark_ms
    for opened in sorted(join.open.values(), key=lambda opened: opened.offset):
        _write_open(opened, state.open.add())
    for decision_id, gone in sorted(join.gone.items()):
        state.gone.add(decision_id=decision_id, forgotten_ms=gone.forgotten_ms, fate=gone.fate)
    waiting = [waiting for events in join.waiting.values() for waiting in events]
    for offset, append_time_ms, event in sorted(waiting, key=lambda waiting: waiting.offset):
        state.waiting.add(offset=offset, append_time_ms=append_time_ms, event=_bytes_of(event))
    untaken = [example for bucket in join.buckets.values() for example in bucket]
    for example in sorted(untaken, key=lambda example: example.offset):
        _write_example(example, state.untaken.add())


def partition_of(config: JoinConfig, partition: int, state: PartitionState, ledger: Ledger) -> PartitionJoin:
    """The partition's join as `write_partition` found it."""
    join = PartitionJoin(config, partition, ledger)
    join.next_offset, join.watermark_ms = state.next_offset, state.watermark_ms
    for opened in state.open:
        join.hold(_opened_of(opened, config.open_ms))
    for gone in state.gone:
        join.remember(gone.decision_id, Gone(gone.forgotten_ms, gone.fate))
    for waiting in state.waiting:
        join.wait(Waiting(waiting.offset, waiting.append_time_ms, Event.FromString(waiting.event)))
    for example in state.untaken:
        join.keep(_example_of(example, partition))
    return join


def ledger_state(ledger: Ledger) -> LedgerState:
    """All that `ledger_of` needs."""
    return LedgerState(
        of={kind: KindState(counts=counts) for kind, counts in ledger.of.items()},
        slots_shown=ledger.slots_shown,
        slots_repeated=ledger.slots_repeated,
        taught=ledger.taught,
        reasons=ledger.reasons,
        quarantined=[QuarantinedState(partition=p, offset=o, reason=r, detail=d) for p, o, r, d in ledger.quarantined],
    )


def ledger_of(state: LedgerState) -> Ledger:
    """The ledger as `ledger_state` found it."""
    ledger = Ledger()
    for kind, counts in ledger.of.items():
        counts.update(state.of[kind].counts)
    ledger.slots_shown, ledger.slots_repeated, ledger.taught = state.slots_shown, state.slots_repeated, state.taught
    ledger.reasons.update(state.reasons)
    ledger.quarantined.extend(Quarantined(q.partition, q.offset, q.reason, q.detail) for q in state.quarantined)
    return ledger


def _write_open(opened: OpenDecision, state: OpenState) -> None:
    state.decision, state.offset, state.own = _bytes_of(opened.decision), opened.offset, opened.own
    state.shown.extend(opened.shown)
    state.shown_append_times_ms.extend(opened.shown.values())
    for t, event_id, slot, kind, value, append_time_ms in opened.feedback:
        state.feedback.add(event_time_ms=t, event_id=event_id, slot=slot, kind=kind, value=value, append_time_ms=append_time_ms)


def _opened_of(state: OpenState, open_ms: int) -> OpenDecision:
    said = [Said(f.event_time_ms, f.event_id, f.slot, f.kind, f.value, f.append_time_ms) for f in state.feedback]
    shown = dict(zip(state.shown, state.shown_append_times_ms, strict=True))
    decision = Decision.FromString(state.decision)
    return OpenDecision(decision, state.offset, state.own, decision.event_time_ms + open_ms, shown, said)


def _write_example(example: Example, state: ExampleState) -> None:
    state.decision, state.offset, state.own = _bytes_of(example.decision), example.offset, example.own
    for slot, reward, feedback in zip(example.shown, example.rewards, example.feedback, strict=True):
        state.shown.add(slot=slot, reward=reward, kinds=[kind for kind, _ in feedback], values=[value for _, value in feedback])
    state.append_times_ms.extend(example.append_times_ms)


def _example_of(state: ExampleState, partition: int) -> Example:
    return Example(
        decision=Decision.FromString(state.decision),
        partition=partition,
        offset=state.offset,
        shown=tuple(slot.slot for slot in state.shown),
        rewards=tuple(slot.reward for slot in state.shown),
        feedback=tuple(tuple(zip(slot.kinds, slot.values, strict=True)) for slot in state.shown),
        own=state.own,
        append_times_ms=tuple(state.append_times_ms),
    )


def _bytes_of(message: Decision | Event) -> bytes:
    return message.SerializeToString(deterministic=True)
