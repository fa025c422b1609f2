"""What a joiner's state is made of: open decisions as bytes, and due dates."""

from hypothesis import given
from hypothesis import strategies as st
from joins import T, decision, said, shown

from streaming.due_dates import NEVER_MS, DueDates
from streaming.events import encode
from streaming.held import held, is_copy, key_of, parts, told_of, with_event
from streaming.proto.joiner_pb2 import Held

offsets = st.integers(0, 2**62)


@given(offsets, offsets, st.lists(st.integers(0, 9000), max_size=5))
def test_what_is_held_is_the_message_it_says_it_is(memory_offset, offset, lengths):
    logged = [encode(said(event_id="x" * length), T) for length in lengths]
    open_decision = held(memory_offset, offset, encode(decision(), T))
    for value in logged:
        open_decision = with_event(open_decision, value)
    message = Held.FromString(b"".join(parts(open_decision)))
    assert (message.memory_offset, message.offset, message.decision.decision) == (memory_offset, offset, decision())
    assert [encode(record.event, record.append_time_ms) for record in message.events] == logged
    assert told_of(b"".join(parts(open_decision))) == open_decision


def test_a_copy_is_the_same_bytes_and_nothing_less():
    open_decision = with_event(held(3, 4, encode(decision(), T)), encode(shown(0), T))
    assert is_copy(open_decision, encode(decision(), T))
    assert not any(is_copy(open_decision, encode(other, T)) for other in (decision("e"), decision(user="v"), decision(t=T + 1)))
    assert not is_copy(open_decision, encode(decision(), T + 1))
    assert not is_copy(open_decision, b"")


@given(st.text(max_size=40), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_a_key_is_a_number_for_32_hexadecimal_digits(text, digits):
    assert key_of(digits) == int(digits, 16)
    assert 0 <= key_of(text) < 2**128
    assert key_of(text) == key_of(digits) if text == digits else key_of(text) != key_of(digits)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000))))
def test_due_dates_come_in_order_and_none_is_lost(added):
    """At each step one more is added, due at any time, and time goes on to another."""
    dates, waiting, now_ms = DueDates(), [], 0
    for number, (due_ms, later_ms) in enumerate(added):
        dates.add(due_ms, number)
        waiting.append((due_ms, number))
        now_ms = max(now_ms, later_ms)
        due = sorted(entry for entry in waiting if entry[0] <= now_ms)
        waiting = [entry for entry in waiting if entry[0] > now_ms]
        assert dates.pop(now_ms) == [number for _, number in due]
        assert now_ms < dates.next_ms <= min((due_ms for due_ms, _ in waiting), default=NEVER_MS)
