"""A joiner's state as bytes and back. Knows the joiner's data, none of its rules.

A snapshot is a prefix (a mark, its schema, a length), a JoinerState of that length, and the open decisions as they are held.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from google.protobuf.message import DecodeError

from streaming.books import Ledger, Quarantined
from streaming.events import decision_id_of, decode
from streaming.held import decision_in, key_of, messages_of, told_of
from streaming.partition_join import FATES, PartitionJoin, Waiting
from streaming.proto.joiner_pb2 import (
    ExampleState,
    GoneState,
    Held,
    JoinerState,
    KindState,
    LedgerState,
    PartitionState,
    QuarantinedState,
)
from streaming.slots import OPEN, OPEN_TAUGHT
from streaming.table import Known
from streaming.window import Example, JoinConfig

SCHEMA = 2
_MARK = b"joiner"
_PREFIX = struct.Struct("<6sHQ")


def snapshot_parts(joins: Sequence[PartitionJoin], ledger: Ledger, trained_through_ms: int) -> list[bytes]:
    """The bytes of a snapshot in pieces; they depend on the state alone."""
    state = JoinerState(trained_through_ms=trained_through_ms, ledger=_ledger_state(ledger))
    held: list[bytes] = []
    for join in joins:
        held += _write_partition(join, state.partitions.add())
    body = state.SerializeToString(deterministic=True)
    return [_PREFIX.pack(_MARK, SCHEMA, len(body)), body, *held]


def read_snapshot(config: JoinConfig, snapshot: bytes) -> tuple[list[PartitionJoin], Ledger, int]:
    """What `snapshot_parts` was given. ValueError when the bytes are no snapshot, or one of another schema."""
    if len(snapshot) < _PREFIX.size or not snapshot.startswith(_MARK):
        raise ValueError(f"not a snapshot of a joiner of schema {SCHEMA}, which this program reads")
    _, schema, length = _PREFIX.unpack_from(snapshot)
    if schema != SCHEMA:
        raise ValueError(f"a joiner's snapshot of schema {schema}; this program reads {SCHEMA}")
    begin = _PREFIX.size + length
    try:
        state = JoinerState.FromString(snapshot[_PREFIX.size : begin])
    except DecodeError as error:
        raise ValueError(f"not a snapshot of a joiner: {error}") from error
    sizes = [size for partition in state.partitions for size in partition.open_sizes]
    if begin + sum(sizes) != len(snapshot):
        raise ValueError(f"a joiner's snapshot of {len(snapshot)} bytes that should have {begin + sum(sizes)}")
    ledger = _ledger_of(state.ledger)
    held = _pieces(snapshot, begin, sizes)
    joins = [_partition_of(config, number, part, ledger, held) for number, part in enumerate(state.partitions)]
    return joins, ledger, state.trained_through_ms


def _pieces(snapshot: bytes, begin: int, sizes: Sequence[int]) -> Iterator[bytes]:
    for size in sizes:
        yield snapshot[begin : begin + size]
        begin += size


def _write_partition(join: PartitionJoin, state: PartitionState) -> list[bytes]:
    """In place, because protobuf copies whole messages when it is handed finished ones. Comes back: what is held, in pieces."""
    state.next_offset, state.watermark_ms = join.next_offset, join.watermark_ms
    slots = join.table.open_slots()
    held, sizes = messages_of([join.told[slot] for slot in slots], *join.table.offsets(slots))
    state.open_sizes.extend(sizes)
    for gone_as, fate in FATES.items():
        keys, forgotten_ms = join.table.gone(gone_as)
        state.gone.add(fate=fate, numbers=keys.astype(">u8").tobytes(), forgotten_ms=forgotten_ms.tolist())
    waiting = [waiting for events in join.waiting.values() for waiting in events]
    for event in sorted(waiting):
        state.waiting.add(offset=event.offset, record=event.record)
    untaken = [example for bucket in join.buckets.values() for example in bucket.examples]
    alike: dict[tuple[int, int, int], bytes] = {}
    untaken.sort(key=lambda example: example.offset)
    memory_offsets, offsets = (np.array([getattr(example, name) for example in untaken], np.int64) for name in ("memory_offset", "offset"))
    pieces, _ = messages_of([example.record for example in untaken], memory_offsets, offsets)
    for example, head, record in zip(untaken, pieces[::2], pieces[1::2], strict=True):
        _write_example(example, head + record, state.untaken.add(), alike)
    return held


def _partition_of(config: JoinConfig, partition: int, state: PartitionState, ledger: Ledger, held: Iterator[bytes]) -> PartitionJoin:
    join = PartitionJoin(config, partition, ledger)
    join.next_offset, join.table.watermark_ms = state.next_offset, state.watermark_ms
    messages = list(islice(held, len(state.open_sizes)))
    opened = [_opened(join, message) for message in messages]
    join.know(opened, list(map(told_of, messages)), [known for gone in state.gone for known in _gone(gone)])
    for waiting in state.waiting:
        _wait(join, waiting.offset, waiting.record)
    for example in state.untaken:
        _keep(join, example)
    return join


def _opened(join: PartitionJoin, message: bytes) -> Known:
    held = Held.FromString(message)
    decision = held.decision.decision
    for record in held.events:
        join.num_held["exposure" if record.event.HasField("exposure") else "feedback"] += 1
    state = OPEN if decision.variant == join.config.variant else OPEN_TAUGHT
    return Known(key_of(decision.decision_id), state, decision.event_time_ms + join.config.open_ms, held.memory_offset, held.offset)


def _gone(state: GoneState) -> list[Known]:
    (gone_as,) = [gone_as for gone_as, fate in FATES.items() if fate == state.fate]
    keys = [int.from_bytes(state.numbers[at : at + 16]) for at in range(0, len(state.numbers), 16)]
    keys += map(key_of, state.names)
    return [Known(key, gone_as, forgotten_ms) for key, forgotten_ms in zip(keys, state.forgotten_ms, strict=True)]


def _wait(join: PartitionJoin, offset: int, value: bytes) -> None:
    event = decode(value).event
    kind = "exposure" if event.HasField("exposure") else "feedback"
    spoken = event.exposure if event.HasField("exposure") else event.feedback
    expires_ms = event.event_time_ms + join.config.disorder_ms
    join.wait(key_of(decision_id_of(spoken.decision_token)), Waiting(offset, expires_ms, kind, value))


def _write_example(example: Example, held: bytes, state: ExampleState, alike: dict[tuple[int, int, int], bytes]) -> None:
    """`alike`: what was earned, written, by the very objects that say it; most are those of many Examples."""
    state.held, state.own = held, example.own
    which = id(example.shown), id(example.rewards), id(example.feedback)
    if which not in alike:
        earned = ExampleState()
        for slot, reward, feedback in zip(example.shown, example.rewards, example.feedback, strict=True):
            earned.shown.add(slot=slot, reward=reward, kinds=[kind for kind, _ in feedback], values=[value for _, value in feedback])
        alike[which] = earned.SerializeToString()
    state.MergeFromString(alike[which])
    state.append_times_ms.extend(example.append_times_ms)


def _keep(join: PartitionJoin, state: ExampleState) -> None:
    held = Held.FromString(state.held)
    decision = held.decision.decision
    example = Example(
        decision_in(told_of(state.held)),
        decision.event_time_ms,
        decision.decision_id,
        join.partition,
        held.offset,
        held.memory_offset,
        state.own,
        shown=tuple(slot.slot for slot in state.shown),
        rewards=tuple(slot.reward for slot in state.shown),
        feedback=tuple(tuple(zip(slot.kinds, slot.values, strict=True)) for slot in state.shown),
        append_times_ms=tuple(state.append_times_ms),
    )
    join.keep([example])


def _ledger_state(ledger: Ledger) -> LedgerState:
    return LedgerState(
        of={kind: KindState(counts=counts) for kind, counts in ledger.of.items()},
        slots_shown=ledger.slots_shown,
        slots_repeated=ledger.slots_repeated,
        taught=ledger.taught,
        copies=ledger.copies,
        never_read=ledger.never_read,
        refused=ledger.refused,
        reasons=ledger.reasons,
        quarantined=[QuarantinedState(partition=p, offset=o, reason=r, detail=d, watermark_ms=w) for p, o, r, d, w in ledger.quarantined],
    )


def _ledger_of(state: LedgerState) -> Ledger:
    ledger = Ledger()
    for kind, counts in ledger.of.items():
        counts.update(state.of[kind].counts)
    ledger.slots_shown, ledger.slots_repeated, ledger.taught = state.slots_shown, state.slots_repeated, state.taught
    ledger.copies, ledger.never_read = state.copies, state.never_read
    ledger.refused.update(state.refused)
    ledger.reasons.update(state.reasons)
    ledger.quarantined.extend(Quarantined(q.partition, q.offset, q.reason, q.detail, q.watermark_ms) for q in state.quarantined)
    return ledger
