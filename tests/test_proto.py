"""The schema: the contract as it was given, the generated code as the compiler makes it, and old records still readable."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from streaming.events import (
    Control,
    Decision,
    Event,
    Exposure,
    Feedback,
    Interaction,
    Item,
    ItemChange,
    Record,
    Tick,
    UnreadableRecord,
    decode,
    encode,
)
from streaming.proto.joiner_pb2 import DESCRIPTOR as JOINER
from streaming.proto.recommender_pb2 import DESCRIPTOR as RECOMMENDER
from streaming.proto.recommender_pb2 import Degraded
from streaming.proto.records_pb2 import DESCRIPTOR as RECORDS

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT.parent / "shared" / "contract" / "recommender.proto"
PROTO = Path("streaming") / "proto"
NAMES = ["recommender", "records", "joiner"]

DECISION = Decision(
    decision_id="d1",
    user_id="u1",
    event_time_ms=1001,
    variant="online",
    policy_version=7,
    decision_token="d1.t",
    item_ids=["a", "b"],
    slot_logprobs=[-0.5, -1.25],
    memory_offset=11,
    items_offset=12,
    request_id="r1",
    slate_size=2,
    context={"surface": "home"},
    exclude_item_ids=["x"],
    candidate_item_ids=["a", "b", "x"],
    where={"lang": "en"},
    seen_excluded=True,
    way="slot",
    temperature=0.5,
    floor=0.25,
    novelty_bonus=0.75,
    behavior_digest="bd",
    seed=99,
    degraded=Degraded.DEGRADED_LAST_GOOD,
    trained_through_ms=900,
)
ITEM = Item(item_id="a", title="T", attributes={"k": "v"}, embedding=[0.5, -1], retired=True)

GOLDEN: list[tuple[Decision | Event | Tick | Control | ItemChange, str]] = [
    (
        DECISION,
        "080110b9601a9e010a0264311202753118e90722066f6e6c696e652807320464312e743a01613a01624210000000000000e0bf000000000000f4bf"
        "480b500c5a02723160026a0f0a07737572666163651204686f6d657201787a01617a01627a017882010a0a046c616e671202656e880101920104736c"
        "6f749901000000000000e03fa101000000000000d03fa901000000000000e83fb201026264b80163c00102c8018407",
    ),
    (Decision(decision_id="d2", value_weight=2), "080110b9601a0e0a026432d1010000000000000040"),  # came later
    (
        Event(event_id="e1", user_id="u1", event_time_ms=2, exposure=Exposure(decision_token="t", slots=[0, 2])),
        "080110b96022130a02653112027531180222070a017412020002",
    ),
    (
        Event(event_id="e2", user_id="u1", event_time_ms=3, feedback=Feedback(decision_token="t", slot=2, kind="click", value=1.5)),
        "080110b96022210a0265321202753118032a150a017410021a05636c69636b21000000000000f83f",
    ),
    (
        Event(event_id="e3", user_id="u1", event_time_ms=4, interaction=Interaction(item_id="a", kind="like", value=-2)),
        "080110b960221e0a02653312027531180432120a016112046c696b651900000000000000c0",
    ),
    (Tick(event_time_ms=5), "080110b9602a020805"),
    (Control(kind="rollback", event_time_ms=6, arguments={"to": "3"}), "080110b96032150a08726f6c6c6261636b10061a070a02746f120133"),
    (ItemChange(event_time_ms=7, item=ITEM), "080110b9603a1e0807121a0a01611201541a060a016b12017622080000003f000080bf2801"),
]
"""What was written when the log began. These bytes never change: a log of that day must be read as it was meant."""


def generated(out: Path, *options: str, names: list[str]) -> None:
    """Run the compiler as the README says."""
    protos = [(PROTO / f"{name}.proto").as_posix() for name in names]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *(option.format(out) for option in options), *protos]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.skipif(not CONTRACT.is_file(), reason="no ../shared beside this checkout")
def test_the_contract_is_what_was_agreed() -> None:
    assert (ROOT / PROTO / "recommender.proto").read_bytes() == CONTRACT.read_bytes()


def test_generated_code_is_what_the_compiler_makes(tmp_path: Path) -> None:
    generated(tmp_path, "--python_out={}", "--pyi_out={}", names=NAMES)
    generated(tmp_path, "--grpc_python_out={}", names=["recommender"])
    for name in NAMES:
        for kind in ("_pb2.py", "_pb2.pyi"):
            assert (tmp_path / PROTO / f"{name}{kind}").read_text() == (ROOT / PROTO / f"{name}{kind}").read_text()
    stub = (tmp_path / PROTO / "recommender_pb2_grpc.py").read_text()
    assert stub == (ROOT / "recsys" / "recommender_pb2_grpc.py").read_text()


@pytest.mark.parametrize(("body", "golden"), GOLDEN, ids=lambda value: value.WhichOneof("body") if isinstance(value, Event) else None)
def test_a_record_of_the_first_day_reads_as_it_was_meant(body: Message, golden: str) -> None:
    record = decode(bytes.fromhex(golden))
    assert (record.schema, record.append_time_ms) == (1, 12345)
    name = record.WhichOneof("body")
    assert name is not None
    assert getattr(record, name) == body


@pytest.mark.parametrize(("body", "golden"), GOLDEN)
def test_a_record_is_still_written_in_the_same_bytes(body: Decision | Event | Tick | Control | ItemChange, golden: str) -> None:
    assert encode(body, 12345).hex() == golden


def test_the_golden_records_hold_every_field_there_was() -> None:
    """Every field of every message in the log is set in one of them, so that none can be renumbered unnoticed."""
    records = [decode(bytes.fromhex(golden)) for _, golden in GOLDEN]
    found: set[str] = set()
    for record in records:
        found |= set(fields_of(record))
    wanted = {field.full_name for message in messages_of(Record.DESCRIPTOR) for field in message.fields}
    assert wanted - found == set()


def fields_of(message: Message) -> list[str]:
    """Full names of the fields set in a message and in those inside it."""
    out = []
    for field, value in message.ListFields():
        out.append(field.full_name)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            out += fields_of(value)
    return out


def messages_of(message: Descriptor) -> list[Descriptor]:
    """A message type and those inside it, maps apart."""
    out = [message]
    for field in message.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            out += messages_of(field.message_type)
    return out


def test_no_package_name_changes() -> None:
    assert [file.package for file in (RECOMMENDER, RECORDS, JOINER)] == ["recsys.v1", "recsys.records.v1", "recsys.joiner.v2"]


@pytest.mark.parametrize("broken", ["", "ff", "0801", "080210b9602a020805", "10b9602a020805"])
def test_no_bytes_half_a_record_or_a_newer_one_are_refused(broken: str) -> None:
    with pytest.raises(UnreadableRecord):
        decode(bytes.fromhex(broken))


# Programs of another day ----------------------------------------------------------------------------------------------


def record_of(change: Callable[[DescriptorProto], object]) -> type[Message]:
    """The Record of a program whose Decision has other fields."""
    pool, file = DescriptorPool(), FileDescriptorProto.FromString(RECORDS.serialized_pb)
    change(next(message for message in file.message_type if message.name == "Decision"))
    pool.AddSerializedFile(RECOMMENDER.serialized_pb)
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("recsys.records.v1.Record"))


def without_the_last(decision: DescriptorProto) -> None:
    decision.field.remove(next(field for field in decision.field if field.name == "trained_through_ms"))


def test_what_a_newer_program_added_is_passed_on() -> None:
    newer = record_of(lambda decision: decision.field.add(name="hue", number=1000, type="TYPE_STRING", label="LABEL_OPTIONAL"))
    written = newer.FromString(encode(DECISION, 5))
    written.decision.hue = "red"
    read = decode(written.SerializeToString())
    assert read.decision.decision_id == DECISION.decision_id
    assert newer.FromString(read.SerializeToString()) == written
    read.decision.DiscardUnknownFields()
    assert read.decision == DECISION


def test_an_older_program_reads_what_it_knows_and_passes_on_the_rest() -> None:
    older = record_of(without_the_last)
    assert "trained_through_ms" not in older.DESCRIPTOR.fields_by_name["decision"].message_type.fields_by_name
    read = older.FromString(encode(DECISION, 5))
    assert read.decision.seed == DECISION.seed
    assert decode(read.SerializeToString()).decision == DECISION


def test_a_record_of_an_older_program_lacks_only_what_came_later() -> None:
    older = record_of(without_the_last)
    written = older.FromString(encode(DECISION, 5))
    written.DiscardUnknownFields()
    read = decode(written.SerializeToString()).decision
    assert read.trained_through_ms == 0
    read.trained_through_ms = DECISION.trained_through_ms
    assert read == DECISION
