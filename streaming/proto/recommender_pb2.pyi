from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Seen(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEEN_DEFAULT: _ClassVar[Seen]
    SEEN_EXCLUDE: _ClassVar[Seen]
    SEEN_ALLOW: _ClassVar[Seen]

class Degraded(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADED_NONE: _ClassVar[Degraded]
    DEGRADED_NO_POLICY: _ClassVar[Degraded]
    DEGRADED_LAST_GOOD: _ClassVar[Degraded]
SEEN_DEFAULT: Seen
SEEN_EXCLUDE: Seen
SEEN_ALLOW: Seen
DEGRADED_NONE: Degraded
DEGRADED_NO_POLICY: Degraded
DEGRADED_LAST_GOOD: Degraded

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "slate_size", "request_id", "context", "exclude_item_ids", "candidate_item_ids", "event_time_ms", "where", "seen")
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
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SLATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    slate_size: int
    request_id: str
    context: _containers.ScalarMap[str, str]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    candidate_item_ids: _containers.RepeatedScalarFieldContainer[str]
    event_time_ms: int
    where: _containers.ScalarMap[str, str]
    seen: Seen
    def __init__(self, user_id: _Optional[str] = ..., slate_size: _Optional[int] = ..., request_id: _Optional[str] = ..., context: _Optional[_Mapping[str, str]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., candidate_item_ids: _Optional[_Iterable[str]] = ..., event_time_ms: _Optional[int] = ..., where: _Optional[_Mapping[str, str]] = ..., seen: _Optional[_Union[Seen, str]] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("item_id", "logprob")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    logprob: float
    def __init__(self, item_id: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("decision_id", "decision_token", "slots", "policy_version", "variant", "trained_through_ms", "degraded")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_THROUGH_MS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    decision_token: str
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    policy_version: int
    variant: str
    trained_through_ms: int
    degraded: Degraded
    def __init__(self, decision_id: _Optional[str] = ..., decision_token: _Optional[str] = ..., slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., policy_version: _Optional[int] = ..., variant: _Optional[str] = ..., trained_through_ms: _Optional[int] = ..., degraded: _Optional[_Union[Degraded, str]] = ...) -> None: ...

class Exposure(_message.Message):
    __slots__ = ("decision_token", "slots")
    DECISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    decision_token: str
    slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, decision_token: _Optional[str] = ..., slots: _Optional[_Iterable[int]] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("decision_token", "slot", "kind", "value")
    DECISION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    decision_token: str
    slot: int
    kind: str
    value: float
    def __init__(self, decision_token: _Optional[str] = ..., slot: _Optional[int] = ..., kind: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Interaction(_message.Message):
    __slots__ = ("item_id", "kind", "value")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    kind: str
    value: float
    def __init__(self, item_id: _Optional[str] = ..., kind: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("event_id", "user_id", "event_time_ms", "exposure", "feedback", "interaction")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    user_id: str
    event_time_ms: int
    exposure: Exposure
    feedback: Feedback
    interaction: Interaction
    def __init__(self, event_id: _Optional[str] = ..., user_id: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., exposure: _Optional[_Union[Exposure, _Mapping]] = ..., feedback: _Optional[_Union[Feedback, _Mapping]] = ..., interaction: _Optional[_Union[Interaction, _Mapping]] = ...) -> None: ...

class RecordEventsRequest(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("index", "reason")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: str
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RecordEventsResponse(_message.Message):
    __slots__ = ("accepted", "rejected")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    rejected: _containers.RepeatedCompositeFieldContainer[Rejection]
    def __init__(self, accepted: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item_id", "title", "attributes", "embedding", "retired")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    attributes: _containers.ScalarMap[str, str]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    retired: bool
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., embedding: _Optional[_Iterable[float]] = ..., retired: _Optional[bool] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class UpsertItemsResponse(_message.Message):
    __slots__ = ("accepted", "rejected")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    rejected: _containers.RepeatedCompositeFieldContainer[Rejection]
    def __init__(self, accepted: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VariantStatus(_message.Message):
    __slots__ = ("variant", "policy_version", "trained_through_ms", "published_at_ms", "loaded_at_ms")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRAINED_THROUGH_MS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    policy_version: int
    trained_through_ms: int
    published_at_ms: int
    loaded_at_ms: int
    def __init__(self, variant: _Optional[str] = ..., policy_version: _Optional[int] = ..., trained_through_ms: _Optional[int] = ..., published_at_ms: _Optional[int] = ..., loaded_at_ms: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("variants", "num_items", "num_users", "now_ms")
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    NUM_USERS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    variants: _containers.RepeatedCompositeFieldContainer[VariantStatus]
    num_items: int
    num_users: int
    now_ms: int
    def __init__(self, variants: _Optional[_Iterable[_Union[VariantStatus, _Mapping]]] = ..., num_items: _Optional[int] = ..., num_users: _Optional[int] = ..., now_ms: _Optional[int] = ...) -> None: ...
