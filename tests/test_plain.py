"""Records read as columns, beside what protobuf makes of them: whatever is called plain is what protobuf says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joins import CONFIG, FUTURE, T

from streaming.events import IMPORTED, Control, Decision, Event, Exposure, Feedback, Interaction, Tick, UnreadableRecord, decode, encode
from streaming.fields import EXPOSURE, FEEDBACK, FOREIGN, INTERACTION, OTHER, OWN, TAUGHT, TICK
from streaming.held import key_of
from streaming.joiner import MAX_VALUE, JoinConfig
from streaming.pieces import laid_out
from streaming.pieces import texts as texts_in
from streaming.plain import plain

TEACHING = JoinConfig(variant="a", teach_imported=True, future_ms=FUTURE)
texts = st.one_of(st.text(st.characters(max_codepoint=127), min_size=1, max_size=200), st.text(min_size=1, max_size=20))
ids = st.one_of(st.integers(0, 2**128 - 1).map("{:032x}".format), st.sampled_from(["d", "F" * 32, " " * 32]))
times = st.one_of(st.integers(0, 2**42), st.sampled_from([-1, 0, T, T + FUTURE, T + FUTURE + 1, 2**62]))
maps = st.dictionaries(texts, texts, max_size=2)
doubles = st.floats()
fields = {
    "decision_id": ids,
    "user_id": texts,
    "event_time_ms": times,
    "variant": st.sampled_from(["a", "b", "ab", IMPORTED]),
    "policy_version": st.integers(-1, 2**40),
    "decision_token": texts,
    "item_ids": st.lists(texts, max_size=3),
    "slot_logprobs": st.lists(doubles, max_size=3),
    "memory_offset": st.integers(-1, 2**62),
}
more = {
    "items_offset": st.integers(0, 2**40),
    "request_id": texts,
    "slate_size": st.integers(0, 100),
    "context": maps,
    "exclude_item_ids": st.lists(texts, max_size=2),
    "candidate_item_ids": st.lists(texts, max_size=2),
    "where": maps,
    "seen_excluded": st.booleans(),
    "way": texts,
    "temperature": doubles,
    "floor": doubles,
    "novelty_bonus": doubles,
    "behavior_digest": texts,
    "seed": st.integers(0, 2**64 - 1),
    "degraded": st.sampled_from([0, 1, 2]),
    "trained_through_ms": times,
    "value_weight": doubles,
}
decisions = st.fixed_dictionaries(fields, optional=more).map(lambda named: Decision(**named))
tokens = st.builds(lambda start, rest: start + rest, ids, st.sampled_from(["", ".x", ".1.a", "x", "é"]))
exposures = st.builds(Exposure, decision_token=tokens, slots=st.lists(st.one_of(st.integers(0, 12), st.integers(0, 300)), max_size=12))
values = st.one_of(doubles, st.sampled_from([0.0, -0.0, 1.0, MAX_VALUE, MAX_VALUE * 1.01, float("nan")]))
feedback = st.builds(
    Feedback,
    decision_token=tokens,
    slot=st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1)),
    kind=st.one_of(st.just("click"), texts),
    value=values,
)
interactions = st.builds(Interaction, item_id=texts, kind=texts, value=doubles)
named = {"event_id": texts, "user_id": texts, "event_time_ms": times}
events = st.one_of(
    st.builds(Event, **named, exposure=exposures),
    st.builds(Event, **named, feedback=feedback),
    st.builds(Event, **named, interaction=interactions),
)
bodies = st.one_of(decisions, events, st.builds(Tick, event_time_ms=times), st.builds(Control, kind=texts, event_time_ms=times))
records = st.builds(encode, bodies, st.sampled_from([T, T, 0, 2**62]))


def read(values, config=TEACHING):
    """Kind, key, time and memory offset of each."""
    offsets = range(7, 7 + len(values))
    columns = plain(np.array(offsets), values, config)
    keys = [high << 64 | low for high, low in columns.keys.tolist()]
    return list(zip(columns.kinds.tolist(), keys, columns.times_ms.tolist(), columns.memory_offsets.tolist(), offsets, strict=True))


def by_protobuf(value, config=TEACHING):
    """What `read` should say of a record if it says anything; None where protobuf says that it is nothing to say it of."""
    try:
        record = decode(value)
    except UnreadableRecord:
        return None
    if record.HasField("tick"):
        return TICK, None, record.tick.event_time_ms, None
    if record.HasField("decision"):
        decision = record.decision
        kind = OWN if decision.variant == "a" else TAUGHT if decision.variant == IMPORTED and config.teach_imported else FOREIGN
        return kind, decision.decision_id, decision.event_time_ms, decision.memory_offset
    if record.HasField("event") and record.event.HasField("interaction"):
        return INTERACTION, None, record.event.event_time_ms, None
    if record.HasField("event") and (name := record.event.WhichOneof("body")) in ("exposure", "feedback"):
        decision_id = getattr(record.event, name).decision_token.partition(".")[0]
        return EXPOSURE if name == "exposure" else FEEDBACK, decision_id, record.event.event_time_ms, None
    return None


def check(value, found):
    kind, key, time_ms, memory_offset, offset = found
    if kind == OTHER:
        return
    expected_kind, decision_id, expected_ms, expected_offset = by_protobuf(value)
    assert (kind, time_ms) == (expected_kind, expected_ms)
    assert 0 <= time_ms <= decode(value).append_time_ms + FUTURE
    if decision_id is not None:
        assert key == key_of(decision_id)
    if expected_offset is not None:
        assert memory_offset == (offset if expected_offset < 0 else expected_offset)


def is_usual(value):
    """Whether a record is one as our servers write them: then it must be plain."""
    record, said = decode(value), by_protobuf(value)
    if said is None or not 0 <= said[2] <= min(record.append_time_ms + FUTURE, 2**53) or not record.append_time_ms:
        return False
    if record.HasField("tick"):
        return record.tick.event_time_ms > 0
    has_id = said[1] is None or (len(said[1]) == 32 and set(said[1]) <= set("0123456789abcdef"))
    body = record.decision if record.HasField("decision") else record.event
    return has_id and (record.HasField("decision") or is_usual_event(body))


def is_usual_event(event):
    if not (event.event_id and event.user_id and event.event_time_ms):
        return False
    if event.HasField("exposure"):
        return all(slot < 128 for slot in event.exposure.slots)
    return event.HasField("interaction") or (abs(event.feedback.value) <= MAX_VALUE and str(event.feedback.value) != "-0.0")


@settings(max_examples=400, deadline=None)
@given(st.lists(records, max_size=8))
def test_what_is_plain_is_what_protobuf_says_and_all_that_servers_write_is_plain(values):
    for value, found in zip(values, read(values), strict=True):
        check(value, found)
        assert not is_usual(value) or found[0] != OTHER


@settings(max_examples=600, deadline=None)
@given(records, st.data())
def test_broken_bytes_are_what_protobuf_says_or_not_plain(value, data):
    broken = bytearray(value)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not broken:
            return
    between = encode(Tick(event_time_ms=T), T)
    before, found, behind = read([between, bytes(broken), between])
    assert before[:3:2] == behind[:3:2] == (TICK, T)
    check(bytes(broken), found)


def test_a_field_that_comes_twice_or_out_of_order_is_not_plain():
    decision = Decision(decision_id="0" * 32, user_id="u", event_time_ms=T, variant="a", decision_token="t", item_ids=["i"])
    value = encode(decision, T)
    assert read([value])[0][0] == OWN
    for again in (b"\x18\x01", b"\x0a\x01d", b"\x50\x01\x50\x01", b"\xa0\x06\x01", b"\x22\x01b"):  # time, id, items_offset twice, field 100
        longer = bytearray(value + again)
        longer[longer.index(b"\x1a") + 1] += len(again)
        assert by_protobuf(bytes(longer)) is not None
        assert read([bytes(longer)])[0][0] == OTHER


def test_without_teaching_imported_decisions_are_those_of_others():
    value = encode(Decision(decision_id="0" * 32, user_id="u", event_time_ms=T, variant=IMPORTED), T)
    assert [read([value], config)[0][0] for config in (TEACHING, CONFIG)] == [TAUGHT, FOREIGN]


USERS = [
    b"a", "é".encode(), "€uro".encode(), "😀".encode(), b"\xf4\x8f\xbf\xbf", b"\xed\x9f\xbf", b"\xee\x80\x80",  # UTF-8
    b"\x80", b"\xc2", b"\xc1\x81", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
]  # fmt: skip


@pytest.mark.parametrize("user", USERS, ids=repr)
def test_texts_are_utf_8_as_protobuf_has_it(user):
    event = Event(event_id="e", user_id="x" * len(user), event_time_ms=T, exposure=Exposure(decision_token="0" * 32, slots=[1]))
    value = encode(event, T).replace(b"x" * len(user), user)
    assert (read([value])[0][0] == EXPOSURE) == (by_protobuf(value) is not None)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_texts_are_taken_out_of_what_they_stand_in(found):
    whole, ends = laid_out([text.encode() for text in found])
    lengths = np.diff(ends, prepend=0)
    assert texts_in(np.frombuffer(whole, np.uint8), ends - lengths, lengths) == found
    assert texts_in(np.frombuffer(whole, np.uint8), (ends - lengths)[::-1], lengths[::-1]) == found[::-1]
