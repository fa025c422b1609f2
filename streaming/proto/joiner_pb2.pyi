from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinerState(_message.Message):
    __slots__ = ("schema", "trained_through_ms", "partitions", "ledger")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TRAINED_THROUGH_MS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    schema: int
    trained_through_ms: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionState]
    ledger: LedgerState
    def __init__(self, schema: _Optional[int] = ..., trained_through_ms: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionState, _Mapping]]] = ..., ledger: _Optional[_Union[LedgerState, _Mapping]] = ...) -> None: ...

class PartitionState(_message.Message):
    __slots__ = ("next_offset", "watermark_ms", "open", "gone", "waiting", "untaken")
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_MS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    UNTAKEN_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    watermark_ms: int
    open: _containers.RepeatedCompositeFieldContainer[OpenState]
    gone: _containers.RepeatedCompositeFieldContainer[GoneState]
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingState]
    untaken: _containers.RepeatedCompositeFieldContainer[ExampleState]
    def __init__(self, next_offset: _Optional[int] = ..., watermark_ms: _Optional[int] = ..., open: _Optional[_Iterable[_Union[OpenState, _Mapping]]] = ..., gone: _Optional[_Iterable[_Union[GoneState, _Mapping]]] = ..., waiting: _Optional[_Iterable[_Union[WaitingState, _Mapping]]] = ..., untaken: _Optional[_Iterable[_Union[ExampleState, _Mapping]]] = ...) -> None: ...

class OpenState(_message.Message):
    __slots__ = ("decision", "offset", "own", "shown", "shown_append_times_ms", "feedback")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    SHOWN_APPEND_TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    decision: bytes
    offset: int
    own: bool
    shown: _containers.RepeatedScalarFieldContainer[int]
    shown_append_times_ms: _containers.RepeatedScalarFieldContainer[int]
    feedback: _containers.RepeatedCompositeFieldContainer[SaidState]
    def __init__(self, decision: _Optional[bytes] = ..., offset: _Optional[int] = ..., own: _Optional[bool] = ..., shown: _Optional[_Iterable[int]] = ..., shown_append_times_ms: _Optional[_Iterable[int]] = ..., feedback: _Optional[_Iterable[_Union[SaidState, _Mapping]]] = ...) -> None: ...

class SaidState(_message.Message):
    __slots__ = ("event_time_ms", "event_id", "slot", "kind", "value", "append_time_ms")
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    event_time_ms: int
    event_id: str
    slot: int
    kind: str
    value: float
    append_time_ms: int
    def __init__(self, event_time_ms: _Optional[int] = ..., event_id: _Optional[str] = ..., slot: _Optional[int] = ..., kind: _Optional[str] = ..., value: _Optional[float] = ..., append_time_ms: _Optional[int] = ...) -> None: ...

class GoneState(_message.Message):
    __slots__ = ("decision_id", "forgotten_ms", "fate")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_MS_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    forgotten_ms: int
    fate: str
    def __init__(self, decision_id: _Optional[str] = ..., forgotten_ms: _Optional[int] = ..., fate: _Optional[str] = ...) -> None: ...

class WaitingState(_message.Message):
    __slots__ = ("offset", "append_time_ms", "event")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    offset: int
    append_time_ms: int
    event: bytes
    def __init__(self, offset: _Optional[int] = ..., append_time_ms: _Optional[int] = ..., event: _Optional[bytes] = ...) -> None: ...

class ExampleState(_message.Message):
    __slots__ = ("decision", "offset", "own", "shown", "append_times_ms")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    decision: bytes
    offset: int
    own: bool
    shown: _containers.RepeatedCompositeFieldContainer[SlotState]
    append_times_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, decision: _Optional[bytes] = ..., offset: _Optional[int] = ..., own: _Optional[bool] = ..., shown: _Optional[_Iterable[_Union[SlotState, _Mapping]]] = ..., append_times_ms: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("of", "slots_shown", "slots_repeated", "taught", "reasons", "quarantined")
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
    OF_FIELD_NUMBER: _ClassVar[int]
    SLOTS_SHOWN_FIELD_NUMBER: _ClassVar[int]
    SLOTS_REPEATED_FIELD_NUMBER: _ClassVar[int]
    TAUGHT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    of: _containers.MessageMap[str, KindState]
    slots_shown: int
    slots_repeated: int
    taught: int
    reasons: _containers.ScalarMap[str, int]
    quarantined: _containers.RepeatedCompositeFieldContainer[QuarantinedState]
    def __init__(self, of: _Optional[_Mapping[str, KindState]] = ..., slots_shown: _Optional[int] = ..., slots_repeated: _Optional[int] = ..., taught: _Optional[int] = ..., reasons: _Optional[_Mapping[str, int]] = ..., quarantined: _Optional[_Iterable[_Union[QuarantinedState, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("partition", "offset", "reason", "detail")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    reason: str
    detail: str
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
