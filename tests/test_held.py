"""What a joiner's state is made of: open decisions as bytes, and due dates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joins import CONFIG, M, T, decision, said, shown, tick

from streaming.due_dates import NEVER_MS, DueDates
from streaming.events import encode
from streaming.held import key_of, messages_of, told_of, with_event
from streaming.joiner import Joiner
from streaming.log import LogRecord
from streaming.proto.joiner_pb2 import Held

offsets = st.integers(0, 2**62)


def joined(values, at_once):
    joiner = Joiner(CONFIG, 1)
    for begin in range(0, len(values), at_once):
        joiner.apply(0, [LogRecord(0, begin + at, b"", value) for at, value in enumerate(values[begin : begin + at_once])])
    return joiner


@given(offsets, offsets, st.lists(st.integers(0, 9000), max_size=5))
def test_what_is_held_is_the_message_it_says_it_is(memory_offset, offset, lengths):
    logged = [encode(said(event_id="x" * length), T) for length in lengths]
    open_decision = encode(decision(), T)
    for value in logged:
        open_decision = with_event(open_decision, value)
    pieces, sizes = messages_of([open_decision, open_decision], np.array([0, memory_offset]), np.array([1, offset]))
    text = b"".join(pieces)[sizes[0] :]
    assert len(text) == sizes[1]
    message = Held.FromString(text)
    assert (message.memory_offset, message.offset, message.decision.decision) == (memory_offset, offset, decision())
    assert [encode(record.event, record.append_time_ms) for record in message.events] == logged
    assert told_of(text) == open_decision


@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("restored", [False, True])
def test_an_example_says_where_it_stands_and_as_of_where_it_needs_memory(at_once, restored):
    names = [f"{number:032x}" for number in range(10)]
    bodies = [body for number, name in enumerate(names) for body in (decision(name, memory_offset=number - 5), shown(0, name=name))]
    values = [encode(body, T + 10 * M) for body in (*bodies, tick(T + 10 * M))]
    joiner = joined(values, at_once)
    if restored:
        joiner = Joiner.restore(CONFIG, joiner.snapshot())
    examples = joiner.take_bucket().examples
    assert [example.decision for example in examples] == bodies[::2]
    assert [example.offset for example in examples] == list(range(0, 20, 2))
    assert [example.memory_offset for example in examples] == [0, 2, 4, 6, 8, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [1, 100])
def test_an_id_used_again_once_it_is_forgotten_is_another_decision_in_whatever_polls(at_once):
    name = "a" * 32
    bodies = [decision(name, memory_offset=7), shown(0, name=name), tick(T + 10 * M)]
    bodies += [decision(name, t=T + 10 * M, memory_offset=2), shown(1, name=name, t=T + 10 * M), tick(T + 20 * M)]
    joiner = joined([encode(body, body.event_time_ms) for body in bodies], at_once)
    examples = [example for _ in range(2) for example in joiner.take_bucket().examples]
    assert [(example.offset, example.memory_offset, example.shown) for example in examples] == [(0, 7, (0,)), (3, 2, (1,))]


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
