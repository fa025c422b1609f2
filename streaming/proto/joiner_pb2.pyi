from streaming.proto import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinerState(_message.Message):
    __slots__ = ("trained_through_ms", "partitions", "ledger")
    TRAINED_THROUGH_MS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    trained_through_ms: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionState]
    ledger: LedgerState
    def __init__(self, trained_through_ms: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionState, _Mapping]]] = ..., ledger: _Optional[_Union[LedgerState, _Mapping]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("memory_offset", "offset", "decision", "events")
    MEMORY_OFFSET_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    memory_offset: int
    offset: int
    decision: _records_pb2.Record
    events: _containers.RepeatedCompositeFieldContainer[_records_pb2.Record]
    def __init__(self, memory_offset: _Optional[int] = ..., offset: _Optional[int] = ..., decision: _Optional[_Union[_records_pb2.Record, _Mapping]] = ..., events: _Optional[_Iterable[_Union[_records_pb2.Record, _Mapping]]] = ...) -> None: ...

class PartitionState(_message.Message):
    __slots__ = ("next_offset", "watermark_ms", "open_sizes", "gone", "waiting", "untaken")
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    OPEN_SIZES_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    UNTAKEN_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    watermark_ms: int
    open_sizes: _containers.RepeatedScalarFieldContainer[int]
    gone: _containers.RepeatedCompositeFieldContainer[GoneState]
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingState]
    untaken: _containers.RepeatedCompositeFieldContainer[ExampleState]
    def __init__(self, next_offset: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., open_sizes: _Optional[_Iterable[int]] = ..., gone: _Optional[_Iterable[_Union[GoneState, _Mapping]]] = ..., waiting: _Optional[_Iterable[_Union[WaitingState, _Mapping]]] = ..., untaken: _Optional[_Iterable[_Union[ExampleState, _Mapping]]] = ...) -> None: ...

class GoneState(_message.Message):
    __slots__ = ("fate", "numbers", "names", "forgotten_ms")
    FATE_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_MS_FIELD_NUMBER: _ClassVar[int]
    fate: str
    numbers: bytes
    names: _containers.RepeatedScalarFieldContainer[str]
    forgotten_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, fate: _Optional[str] = ..., numbers: _Optional[bytes] = ..., names: _Optional[_Iterable[str]] = ..., forgotten_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class WaitingState(_message.Message):
    __slots__ = ("offset", "record")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    offset: int
    record: bytes
    def __init__(self, offset: _Optional[int] = ..., record: _Optional[bytes] = ...) -> None: ...

class ExampleState(_message.Message):
    __slots__ = ("held", "own", "shown", "append_times_ms")
    HELD_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    held: bytes
    own: bool
    shown: _containers.RepeatedCompositeFieldContainer[SlotState]
    append_times_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, held: _Optional[bytes] = ..., own: _Optional[bool] = ..., shown: _Optional[_Iterable[_Union[SlotState, _Mapping]]] = ..., append_times_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class SlotState(_message.Message):
    __slots__ = ("slot", "reward", "kinds", "values")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    slot: int
    reward: float
    kinds: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, slot: _Optional[int] = ..., reward: _Optional[float] = ..., kinds: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class LedgerState(_message.Message):
    __slots__ = ("of", "slots_shown", "slots_repeated", "taught", "reasons", "quarantined", "copies", "never_read", "refused")
    class OfEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: KindState
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[KindState, _Mapping]] = ...) -> None: ...
    class ReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OF_FIELD_NUMBER: _ClassVar[int]
    SLOTS_SHOWN_FIELD_NUMBER: _ClassVar[int]
    SLOTS_REPEATED_FIELD_NUMBER: _ClassVar[int]
    TAUGHT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    NEVER_READ_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    of: _containers.MessageMap[str, KindState]
    slots_shown: int
    slots_repeated: int
    taught: int
    reasons: _containers.ScalarMap[str, int]
    quarantined: _containers.RepeatedCompositeFieldContainer[QuarantinedState]
    copies: int
    never_read: int
    refused: _containers.ScalarMap[str, int]
    def __init__(self, of: _Optional[_Mapping[str, KindState]] = ..., slots_shown: _Optional[int] = ..., slots_repeated: _Optional[int] = ..., taught: _Optional[int] = ..., reasons: _Optional[_Mapping[str, int]] = ..., quarantined: _Optional[_Iterable[_Union[QuarantinedState, _Mapping]]] = ..., copies: _Optional[int] = ..., never_read: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ...) -> None: ...

class KindState(_message.Message):
    __slots__ = ("counts",)
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class QuarantinedState(_message.Message):
    __slots__ = ("partition", "offset", "reason", "detail", "watermark_ms")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    reason: str
    detail: str
    watermark_ms: int
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., watermark_ms: _Optional[int] = ...) -> None: ...
