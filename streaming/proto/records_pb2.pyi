from streaming.proto import recommender_pb2 as _recommender_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Record(_message.Message):
    __slots__ = ("schema", "append_time_ms", "decision", "event", "tick", "control", "item")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    schema: int
    append_time_ms: int
    decision: Decision
    event: _recommender_pb2.Event
    tick: Tick
    control: Control
    item: ItemChange
    def __init__(self, schema: _Optional[int] = ..., append_time_ms: _Optional[int] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., event: _Optional[_Union[_recommender_pb2.Event, _Mapping]] = ..., tick: _Optional[_Union[Tick, _Mapping]] = ..., control: _Optional[_Union[Control, _Mapping]] = ..., item: _Optional[_Union[ItemChange, _Mapping]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("decision_id", "user_id", "event_time_ms", "variant", "policy_version", "decision_token", "item_ids", "slot_logprobs", "memory_offset", "items_offset", "request_id", "slate_size", "context", "exclude_item_ids", "candidate_item_ids", "where", "seen_excluded", "way", "temperature", "floor", "novelty_bonus", "behavior_digest", "seed", "degraded", "trained_through_ms", "value_weight")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class WhereEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SLOT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ITEMS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SLATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    SEEN_EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    NOVELTY_BONUS_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    TRAINED_THROUGH_MS_FIELD_NUMBER: _ClassVar[int]
    VALUE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    user_id: str
    event_time_ms: int
    variant: str
    policy_version: int
    decision_token: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    slot_logprobs: _containers.RepeatedScalarFieldContainer[float]
    memory_offset: int
    items_offset: int
    request_id: str
    slate_size: int
    context: _containers.ScalarMap[str, str]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    candidate_item_ids: _containers.RepeatedScalarFieldContainer[str]
    where: _containers.ScalarMap[str, str]
    seen_excluded: bool
    way: str
    temperature: float
    floor: float
    novelty_bonus: float
    behavior_digest: str
    seed: int
    degraded: _recommender_pb2.Degraded
    trained_through_ms: int
    value_weight: float
    def __init__(self, decision_id: _Optional[str] = ..., user_id: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., variant: _Optional[str] = ..., policy_version: _Optional[int] = ..., decision_token: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., slot_logprobs: _Optional[_Iterable[float]] = ..., memory_offset: _Optional[int] = ..., items_offset: _Optional[int] = ..., request_id: _Optional[str] = ..., slate_size: _Optional[int] = ..., context: _Optional[_Mapping[str, str]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., candidate_item_ids: _Optional[_Iterable[str]] = ..., where: _Optional[_Mapping[str, str]] = ..., seen_excluded: _Optional[bool] = ..., way: _Optional[str] = ..., temperature: _Optional[float] = ..., floor: _Optional[float] = ..., novelty_bonus: _Optional[float] = ..., behavior_digest: _Optional[str] = ..., seed: _Optional[int] = ..., degraded: _Optional[_Union[_recommender_pb2.Degraded, str]] = ..., trained_through_ms: _Optional[int] = ..., value_weight: _Optional[float] = ...) -> None: ...

class Tick(_message.Message):
    __slots__ = ("event_time_ms",)
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    event_time_ms: int
    def __init__(self, event_time_ms: _Optional[int] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("kind", "event_time_ms", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    event_time_ms: int
    arguments: _containers.ScalarMap[str, str]
    def __init__(self, kind: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., arguments: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ItemChange(_message.Message):
    __slots__ = ("event_time_ms", "item")
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    event_time_ms: int
    item: _recommender_pb2.Item
    def __init__(self, event_time_ms: _Optional[int] = ..., item: _Optional[_Union[_recommender_pb2.Item, _Mapping]] = ...) -> None: ...
