"""The table of a partition's decisions beside a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.due_dates import NEVER_MS
from streaming.slots import AWAITED, GONE_FOREIGN, GONE_GAP, GONE_LATE, NOWHERE, OPEN, OPEN_TAUGHT
from streaming.table import Table

OPEN_MS = 50
KEYS = [0, 1, 1 << 64, (1 << 128) - 1, *(number << 70 for number in range(1, 6))]
steps = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(KEYS), st.integers(0, 60), st.booleans()),
    st.tuples(st.just("foreign"), st.sampled_from(KEYS), st.integers(0, 60), st.just(False)),
    st.tuples(st.just("wait"), st.sampled_from(KEYS), st.just(0), st.just(False)),
    st.tuples(st.just("stop waiting"), st.sampled_from(KEYS), st.just(0), st.just(False)),
    st.tuples(st.just("move"), st.just(0), st.integers(0, 40), st.booleans()),
    st.tuples(st.just("give up"), st.just(0), st.just(0), st.just(False)),
)


class Plain:
    """The same by the book: (state, due) by key."""

    def __init__(self):
        self.now_ms, self.known = 0, {}

    def move(self, now_ms):
        self.now_ms, closed = now_ms, []
        for key, (state, due_ms) in sorted(self.known.items(), key=lambda item: item[1][1]):
            if state in (OPEN, OPEN_TAUGHT) and due_ms <= now_ms:
                self.known[key] = (GONE_LATE if state == OPEN else GONE_FOREIGN, due_ms + OPEN_MS)
                closed.append(key)
        return closed

    def give_up(self):
        for key, (state, due_ms) in self.known.items():
            if state in (OPEN, OPEN_TAUGHT):
                self.known[key] = (GONE_GAP if state == OPEN else GONE_FOREIGN, due_ms + OPEN_MS)

    def forget(self):
        self.known = {
            key: (state, due_ms)
            for key, (state, due_ms) in self.known.items()
            if state in (OPEN, OPEN_TAUGHT, AWAITED) or due_ms > self.now_ms
        }


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40))
def test_a_table_knows_what_a_dictionary_knows(todo):
    table, plain = Table(OPEN_MS, 0), Plain()
    table.watermark_ms = 0
    for number, (what, key, later_ms, flag) in enumerate(todo):
        state = plain.known.get(key, (None, 0))[0]
        if what == "open" and state not in (OPEN, OPEN_TAUGHT):
            due_ms = plain.now_ms + 1 + later_ms
            table.open(key, due_ms, number, 100 - number, own=flag)
            plain.known[key] = (OPEN if flag else OPEN_TAUGHT, due_ms)
        elif what == "foreign" and state not in (OPEN, OPEN_TAUGHT):
            table.let_go(key, GONE_FOREIGN, plain.now_ms + later_ms)
            plain.known[key] = (GONE_FOREIGN, plain.now_ms + later_ms)
        elif what == "wait" and state not in (OPEN, OPEN_TAUGHT):
            table.wait_for(key)
            plain.known[key] = (AWAITED, 0)
        elif what == "stop waiting":
            table.wait_no_longer(key)
            if state == AWAITED:
                del plain.known[key]
        elif what == "move":
            slots = {key: table.find(key) for key in KEYS}
            closed = table.move(plain.now_ms + later_ms)
            expected = plain.move(plain.now_ms + later_ms)
            assert sorted(closed.tolist()) == sorted(slots[key] for key in expected)
            if flag:
                table.forget()
                plain.forget()
        elif what == "give up":
            assert len(table.give_up()) == sum(state in (OPEN, OPEN_TAUGHT) for state, _ in plain.known.values())
            plain.give_up()
        compare(table, plain)


def compare(table, plain):
    for key in KEYS:
        slot = table.find(key)
        assert (slot != NOWHERE) == (key in plain.known)
        if slot != NOWHERE:
            state, due_ms = plain.known[key]
            assert table.state(slot) == state
            assert state == AWAITED or table.due_ms(slot) == due_ms
    opened = [state for state, _ in plain.known.values() if state in (OPEN, OPEN_TAUGHT)]
    assert (table.num_open, table.num_taught) == (len(opened), opened.count(OPEN_TAUGHT))
    assert len(table.open_slots()) == len(opened)
    for gone in (GONE_LATE, GONE_FOREIGN, GONE_GAP):
        keys, due_ms = table.gone(gone)
        expected = sorted((due, key) for key, (state, due) in plain.known.items() if state == gone)
        assert [(due, high << 64 | low) for (high, low), due in zip(keys.tolist(), due_ms.tolist(), strict=True)] == expected


def test_a_table_grows_and_gives_back_what_is_over():
    """A hundred times the slots that it begins with, never more than some thousands of them at once."""
    table = Table(OPEN_MS, 0)
    table.watermark_ms = 0
    keys = np.random.default_rng(0).integers(0, 2**63, 100_000).tolist()
    for number, key in enumerate(keys):
        table.open(key, number + OPEN_MS, number, number, own=True)
        if number % 100 == 0:
            table.move(number)
            table.forget()
            assert table.least_memory_offset() == max(0, number - OPEN_MS + 1)
    assert table.size < 2048
    table.move(NEVER_MS)
    assert (table.num_open, table.least_memory_offset(), len(table.gone(GONE_LATE)[0])) == (0, NEVER_MS, 199)  # of all since the last time
    table.forget()
    assert all(table.find(key) == NOWHERE for key in keys)


def test_a_thousand_times_as_many_as_it_was_made_for():
    table = Table(OPEN_MS, 0)
    for number in range(200_000):
        table.open(number * 0x9E3779B97F4A7C15F39CC0605CEDC835 & (1 << 128) - 1, number, number, number, own=number % 2 == 0)
    assert (table.num_open, table.num_taught) == (200_000, 100_000)
    some, arrays = table.open_slots()[::1000], table._arrays
    assert list(zip(arrays.memory_offset[some], arrays.offset[some], strict=True)) == [(n, n) for n in range(0, 200_000, 1000)]
    assert [table.find(5 * 0x9E3779B97F4A7C15F39CC0605CEDC835 & (1 << 128) - 1)] == table.open_slots()[5:6]
