"""Memory as of an offset: the same bytes as if nothing had come after, whatever was forgotten in the meantime."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalogue import item_key
from recsys.memory import GAP_BUCKETS, SHOWN, Memory, MemoryConfig, View
from streaming.events import Control, Decision, Event, Exposure, Feedback, Interaction, Record, Tick

T = 1_700_000_000_000
USERS = ["u", "v"]
CONFIG = MemoryConfig(rows=4, decisions_s=60, kinds=("click", "like"))
FEEDBACK_CLICK, FEEDBACK_OTHER, INTERACTION_CLICK = 2, 4, 5
EXAMPLES = settings(max_examples=100, deadline=None)

seeds = st.integers(0, 2**32 - 1)
Entry = tuple[int, Record]


# Records --------------------------------------------------------------------------------------------------------------


def token_of(name: str) -> str:
    return f"{name}.signed"


def decided(name: str = "d", user: str = "u", t: int = T, slots: int = 3) -> Record:
    items = [f"{name}.{slot}" for slot in range(slots)]
    return Record(decision=Decision(decision_id=name, user_id=user, event_time_ms=t, decision_token=token_of(name), item_ids=items))


def shown(*slots: int, name: str = "d", user: str = "u", t: int = T, token: str = "") -> Record:
    exposure = Exposure(decision_token=token or token_of(name), slots=slots)
    return Record(event=Event(event_id=f"s{t}", user_id=user, event_time_ms=t, exposure=exposure))


def said(slot: int, kind: str = "click", name: str = "d", user: str = "u", t: int = T, token: str = "") -> Record:
    feedback = Feedback(decision_token=token or token_of(name), slot=slot, kind=kind, value=1)
    return Record(event=Event(event_id=f"f{t}", user_id=user, event_time_ms=t, feedback=feedback))


def did(item: str = "x", kind: str = "click", user: str = "u", t: int = T, event_id: str = "i") -> Record:
    return Record(event=Event(event_id=event_id, user_id=user, event_time_ms=t, interaction=Interaction(item_id=item, kind=kind, value=1)))


def random_log(seed: int, length: int) -> list[Entry]:
    """One partition of two users: slates, true and false news of them, repeats, ticks; offsets rise, not always by one."""
    random = np.random.default_rng(seed)
    log: list[Entry] = []
    offset, t = int(random.integers(0, 5)), T
    for number in range(length):
        t += int(random.choice([0, 1, 900, 5_000, 40_000]))
        offset += int(random.choice([1, 1, 1, 7]))
        repeat = bool(log) and random.random() < 0.15
        log.append((offset, log[random.integers(len(log))][1] if repeat else random_record(random, number, t)))
    return log


def random_record(random: np.random.Generator, number: int, t: int) -> Record:
    name, user = f"d{random.integers(1 + number // 4)}", USERS[random.integers(2)]
    late, token = t - int(random.choice([0, 0, 3_000])), "" if random.random() < 0.9 else f"{name}.forged"
    match random.choice(["decided", "shown", "said", "did", "tick", "control"], p=[0.3, 0.2, 0.15, 0.25, 0.05, 0.05]):
        case "decided":
            return decided(f"d{number // 4}", user, t)
        case "shown":
            return shown(*random.integers(0, 4, 3), name=name, user=user, t=late, token=token)
        case "said":
            return said(int(random.integers(4)), "click", name, user, late, token)
        case "did":
            return did(f"x{number}", user=user, t=late, event_id=f"i{random.integers(1 + number)}")
        case "tick":
            return Record(tick=Tick(event_time_ms=t))
    return Record(control=Control(kind="rollback"))


def memory_of(log: list[Entry], config: MemoryConfig = CONFIG, keep_from: int | None = 0) -> Memory:
    """A memory after the log; nothing is forgotten unless `keep_from` allows it."""
    memory = Memory(config, 1)
    memory.keep_from[0] = keep_from
    for offset, record in log:
        memory.apply(0, offset, record)
    return memory


def as_bytes(view: View) -> tuple[bytes, ...]:
    return view.key_L.tobytes(), view.kind_L.tobytes(), view.gap_L.tobytes()


def rows(*records: Record, user: str = "u", config: MemoryConfig | None = None) -> list[tuple[int, int, int]]:
    """(key, kind, gap) of the user's rows after these records."""
    view = memory_of(list(enumerate(records)), config or replace(CONFIG, rows=100)).view(user)
    return list(zip(view.key_L.tolist(), view.kind_L.tolist(), view.gap_L.tolist(), strict=True))


# As of an offset ------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(seeds, st.integers(1, 60), st.integers(1, 9))
def test_a_view_as_of_an_offset_is_that_of_a_memory_fed_up_to_it(seed: int, length: int, num_rows: int) -> None:
    log, config = random_log(seed, length), replace(CONFIG, rows=num_rows)
    whole = memory_of(log, config)
    for offset in range(log[-1][0] + 2):
        before = memory_of([entry for entry in log if entry[0] < offset], config)
        for user in USERS:
            assert as_bytes(whole.view(user, offset)) == as_bytes(before.view(user))


@EXAMPLES
@given(seeds, st.integers(1, 120), st.integers(1, 9), st.integers(1, 40))
def test_what_may_be_forgotten_changes_no_view_that_may_be_asked_for(seed: int, length: int, num_rows: int, lag: int) -> None:
    """A learner that moves `keep_from` on as it goes, beside one that forgets nothing and a server that keeps only the newest."""
    log, config = random_log(seed, length), replace(CONFIG, rows=num_rows)
    whole, learner, server = memory_of([], config), memory_of([], config), memory_of([], config, keep_from=None)
    for at, (offset, record) in enumerate(log):
        for memory in (whole, learner, server):
            memory.apply(0, offset, record)
        keep_from = log[max(0, at - lag)][0]
        learner.keep_from[0] = keep_from
        for user in USERS:
            assert as_bytes(server.view(user)) == as_bytes(whole.view(user))
            for asked, _ in log[max(0, at - lag) : at + 1]:
                assert as_bytes(learner.view(user, asked)) == as_bytes(whole.view(user, asked))


@EXAMPLES
@given(seed=seeds, length=st.integers(1, 60), num_rows=st.integers(1, 6), lag=st.integers(0, 40), share=st.floats(0, 1))
def test_a_memory_of_a_snapshot_goes_on_as_the_one_it_was_made_of(seed: int, length: int, num_rows: int, lag: int, share: float) -> None:
    """The same views as of whatever was kept, now and later; and the same bytes, whatever was forgotten when."""
    config, log = replace(CONFIG, rows=num_rows), random_log(seed, length)
    cut = round(share * len(log))
    memory = memory_of([], config)
    for offset, record in log[:cut]:
        memory.keep_from[0] = max(0, offset - lag)
        memory.apply(0, offset, record)
    restored = Memory.of(config, memory.arrays())
    restored.keep_from = list(memory.keep_from)
    for offset, record in log[cut:]:
        for one in (memory, restored):
            one.apply(0, offset, record)
    assert restored.next_offset == memory.next_offset
    for user in USERS:
        assert restored.num_decisions(user) == memory.num_decisions(user)
        for offset in (*range(memory.keep_from[0] or 0, memory.next_offset[0] + 1), None):
            assert as_bytes(restored.view(user, offset)) == as_bytes(memory.view(user, offset))
    for name, array in restored.arrays().items():
        assert array.tobytes() == memory.arrays()[name].tobytes(), name


def test_rows_are_forgotten_when_they_may_be() -> None:
    """What would make the test above empty: 1,000 rows of a user, of which four are read."""
    log = [(offset, did(event_id=f"i{offset}", t=T + offset)) for offset in range(1000)]
    few, all_ = memory_of(log, keep_from=None), memory_of(log, keep_from=0)
    kept = [len(memory._users["u"].rows) for memory in (few, all_)]
    assert kept[0] <= 16
    assert kept[1] >= 1000
    assert len(few.view("u").key_L) == 4


def test_a_view_stays_as_it_was_when_more_comes() -> None:
    memory = memory_of([(0, did("x"))])
    view = memory.view("u")
    before = as_bytes(view)
    for offset in range(1, 50):
        memory.apply(0, offset, did("y", event_id=f"i{offset}"))
    assert as_bytes(view) == before


def test_partitions_have_offsets_of_their_own() -> None:
    memory = Memory(CONFIG, 2)
    memory.apply(1, 40, did(user="v"))
    memory.apply(0, 3, did(user="u"))
    assert memory.next_offset == [4, 41]
    assert [len(memory.view(user, 4).key_L) for user in USERS] == [1, 0]
    assert memory.num_users == 2


def test_what_says_nothing_of_a_user_only_moves_the_offset() -> None:
    memory = memory_of([(0, Record(tick=Tick(event_time_ms=T))), (7, Record(control=Control(kind="rollback")))])
    assert memory.next_offset == [8]
    assert memory.num_users == 0
    assert as_bytes(memory.view("u")) == (b"", b"", b"")


# What leaves a row ----------------------------------------------------------------------------------------------------


def test_rows_say_what_was_shown_what_was_done_and_how_long_before() -> None:
    records = [did("w"), decided(), shown(2, 0, t=T + 1000), said(0, t=T + 4000), said(0, "share", t=T + 4000)]
    records.append(did("x", "like", t=T + 64_000, event_id="j"))
    keys = [item_key(item) for item in ("w", "d.2", "d.0", "d.0", "d.0", "x")]
    kinds = [INTERACTION_CLICK, SHOWN, SHOWN, FEEDBACK_CLICK, FEEDBACK_OTHER, INTERACTION_CLICK + 1]
    assert rows(*records) == list(zip(keys, kinds, [0, 1, 0, 2, 0, 5], strict=True))


@pytest.mark.parametrize(("gap_s", "bucket"), [(0, 0), (0.999, 0), (1, 1), (2.9, 1), (3, 2), (7, 3), (10**9, GAP_BUCKETS - 1), (-50, 0)])
def test_gaps_are_powers_of_two_of_a_second(gap_s: float, bucket: int) -> None:
    assert rows(did(t=T), did(t=T + int(1000 * gap_s), event_id="j"))[1][2] == bucket


def test_a_late_event_does_not_turn_the_time_back() -> None:
    assert [gap for _, _, gap in rows(did(t=T), did(t=T - 60_000, event_id="j"), did(t=T + 1000, event_id="k"))] == [0, 0, 1]


@pytest.mark.parametrize(
    "false",
    [
        shown(0, token="d.forged"),
        said(0, token="d.forged"),
        shown(0, user="v"),
        said(0, user="v"),
        shown(0, name="nobody's"),
        said(0, name="nobody's"),
        shown(3),
        said(3),
        shown(token="d.signed"),
        shown(0, token="d"),
        Record(event=Event(event_id="e", user_id="u", event_time_ms=T)),
    ],
)
def test_what_is_forged_of_another_user_or_of_no_decision_leaves_no_row(false: Record) -> None:
    false.event.event_time_ms = T + 30_000
    for user in USERS:
        assert rows(decided(), false, user=user) == []
        after = [did(t=T, event_id="j"), did(t=T + 60_000, event_id="k")]
        assert rows(decided(), after[0], false, after[1], user=user) == rows(decided(), *after, user=user)


def test_one_token_does_not_speak_for_another_decision_of_the_user() -> None:
    assert len(rows(decided("d"), decided("e"), shown(0, name="e"))) == 1
    assert rows(decided("d"), shown(0, token="d.signed"), shown(0, token="e.signed")) == rows(decided("d"), shown(0))


@pytest.mark.parametrize("repeated", [shown(0, 2), said(1), did()])
def test_a_repeat_leaves_no_second_row_and_no_trace(repeated: Record) -> None:
    again = Record()
    again.CopyFrom(repeated)
    again.event.event_time_ms += 30_000
    after = did("later", t=T + 60_000, event_id="later")
    assert rows(decided(), repeated, again) == rows(decided(), repeated)
    assert rows(decided(), repeated, again, after) == rows(decided(), repeated, after)


def test_an_interaction_is_a_repeat_as_long_as_its_row_is_read() -> None:
    """Afterwards it is a row again, in every memory: what has been dropped and what has not makes no difference."""
    others = [did(event_id=f"j{number}") for number in range(4)]
    assert len(rows(did(), *others[:3], did(), config=CONFIG)) == 4
    assert [len(memory_of(list(enumerate([did(), *others, did()])), keep_from=k).view("u").key_L) for k in (0, None)] == [4, 4]


def test_a_slot_shown_again_with_a_new_one_leaves_a_row_for_the_new_one() -> None:
    assert [key for key, _, _ in rows(decided(), shown(0, 0), shown(0, 1))] == [item_key("d.0"), item_key("d.1")]


def test_other_kinds_and_slots_of_one_slate_are_rows_of_their_own() -> None:
    assert len(rows(decided(), said(0), said(0, "like"), said(1), said(0))) == 3


def test_a_decision_appended_twice_is_one_slate() -> None:
    assert len(rows(decided(), shown(0), decided(), shown(0))) == 1


def test_a_slate_is_forgotten_when_a_much_later_decision_comes() -> None:
    late = shown(0, t=T + 61_000)
    assert len(rows(decided("d"), decided("e", t=T + 60_000), late)) == 1
    assert len(rows(decided("d"), decided("e", t=T + 60_001), late)) == 0
    assert len(rows(decided("d"), decided("e", user="v", t=T + 60_001), late)) == 1


def test_decisions_are_counted_by_user() -> None:
    memory = memory_of([(0, decided("d")), (1, decided("e")), (2, decided("f", user="v"))])
    assert [memory.num_decisions(user) for user in ("u", "v", "w")] == [2, 1, 0]


@pytest.mark.parametrize(("name", "value"), [("rows", 0), ("rows", 100_001), ("decisions_s", 0), ("decisions_s", 86_401)])
def test_sizes_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"memory.{name} is {value}; it must be 1\.\.\d+"):
        MemoryConfig(**{name: value})


def test_every_kind_has_a_number_of_its_own() -> None:
    kinds = [*CONFIG.kinds, "anything else"]
    found = [CONFIG.kind_of(body(kind=kind)) for body in (Feedback, Interaction) for kind in kinds]
    assert found == list(range(2, CONFIG.num_kinds))
