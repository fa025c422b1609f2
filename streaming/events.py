"""The vocabulary: what can be in the log, as the messages of `streaming/proto/`. Knows nothing of logs, joins or models."""

from google.protobuf.message import DecodeError

from streaming.proto.recommender_pb2 import Event, Exposure, Feedback, Interaction, Item
from streaming.proto.records_pb2 import Control, Decision, ItemChange, Record, Tick

__all__ = [
    "IMPORTED",
    "SCHEMA",
    "Control",
    "Decision",
    "Event",
    "Exposure",
    "Feedback",
    "Interaction",
    "Item",
    "ItemChange",
    "Record",
    "Tick",
    "UnreadableRecord",
    "decision_id_of",
    "decode",
    "encode",
    "kind_and_record",
]

SCHEMA = 1
IMPORTED = "imported"
"""The variant of Decisions made by somebody else's recommender."""


class UnreadableRecord(ValueError):
    """Bytes that are no Record, or one of a newer schema."""


def encode(body: Decision | Event | Tick | Control | ItemChange, append_time_ms: int) -> bytes:
    """The bytes of a Record; deterministic (map entries sorted)."""
    record = Record(schema=SCHEMA, append_time_ms=append_time_ms)
    match body:
        case Decision():
            record.decision.CopyFrom(body)
        case Event():
            record.event.CopyFrom(body)
        case Tick():
            record.tick.CopyFrom(body)
        case Control():
            record.control.CopyFrom(body)
        case ItemChange():
            record.item.CopyFrom(body)
    return record.SerializeToString(deterministic=True)


def decode(value: bytes) -> Record:
    """The Record in `value`. UnreadableRecord when the bytes are broken, empty of a body, or of a newer schema."""
    return kind_and_record(value)[1]


def kind_and_record(value: bytes) -> tuple[str, Record]:
    """What `decode` says, and the name of the record's body: decision, event, tick, control or item."""
    try:
        record = Record.FromString(value)
    except DecodeError as error:
        raise UnreadableRecord(f"not a Record: {error}") from error
    if not 1 <= record.schema <= SCHEMA:
        raise UnreadableRecord(f"schema {record.schema}; this program reads 1..{SCHEMA}")
    kind = record.WhichOneof("body")
    if kind is None:
        raise UnreadableRecord("a Record without a body")
    return kind, record


def decision_id_of(decision_token: str) -> str:
    """The decision a token speaks of: what stands before its first dot. The server checks the signature, nobody else can."""
    return decision_token.partition(".")[0]
