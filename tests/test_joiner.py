import random

import pytest
from joins import CONFIG, FUTURE, SLOTS, Bench, D, L, M, T, W, decision, outcome, said, shown, tick

from streaming.books import MAX_QUARANTINED
from streaming.events import Control, Event, Interaction, encode
from streaming.joiner import MAX_VALUE, JoinConfig, Joiner
from streaming.log import LogRecord
from streaming.slots import GONE_FOREIGN, GONE_GAP, GONE_LATE

# One decision ---------------------------------------------------------------------------------------------------------


def test_a_shown_slot_earns_its_feedback_and_a_silent_one_the_default():
    bench = Bench().put(decision(), shown(2, 0, t=T + 10), said(2, t=T + 500), said(2, "like", t=T + 600, event_id="s2"))
    (example,) = bench.end()
    assert (example.shown, example.rewards, example.feedback) == ((0, 2), (0.0, 3.0), ((), (("click", 1.0), ("like", 1.0))))
    assert (example.partition, example.offset, example.own, example.decision) == (0, 0, True, decision())
    assert example.append_times_ms == (T + 10, T + 500, T + 600)
    assert bench.fates("decisions") == {"trained": 1}
    assert bench.fates() == {"joined": 2}
    assert bench.fates("exposures") == {"joined": 1, "slots_shown": 2}


def test_a_click_may_come_before_its_exposure_and_the_exposure_before_its_decision():
    (example,) = Bench().put(said(1, t=T + 5), shown(1, t=T + 9), decision()).end()
    assert (outcome(example), example.append_times_ms) == ({1: 1.0}, (T + 5, T + 9))


def test_nothing_shown_is_no_example_and_feedback_never_implies_exposure():
    bench = Bench().put(decision(), said(), decision("e"), shown(1, name="e"), said(0, name="e"), said(0, name="e", event_id="x"))
    assert [outcome(example) for example in bench.end()] == [{1: 0.0}]
    assert bench.fates("decisions") == {"trained": 1, "unexposed": 1}
    assert bench.fates() == {"unexposed": 2, "duplicate": 1}


@pytest.mark.parametrize(("after_ms", "fate"), [(W - 1, "joined"), (W, "joined"), (W + 1, "late")])
def test_feedback_counts_up_to_and_with_the_end_of_the_window(after_ms, fate):
    bench = Bench().put(decision(), shown(0), said(t=T + after_ms))
    assert [outcome(example)[0] for example in bench.end()] == [float(fate == "joined")]
    assert bench.fates() == {fate: 1}


@pytest.mark.parametrize(("after_ms", "num_shown"), [(W, 1), (W + 1, 0)])
def test_an_exposure_counts_up_to_and_with_the_end_of_the_window(after_ms, num_shown):
    bench = Bench().put(decision(), shown(0, t=T + after_ms))
    assert len(bench.end()) == num_shown
    assert bench.fates("exposures") == ({"joined": 1, "slots_shown": 1} if num_shown else {"late": 1})


@pytest.mark.parametrize(("watermark_ms", "fate"), [(T + W + L - 1, "joined"), (T + W + L, "late")])
@pytest.mark.parametrize("settled", [False, True])
def test_a_decision_closes_when_the_watermark_is_w_and_l_beyond_it(watermark_ms, fate, settled):
    bench = Bench(watch=settled).put(decision(), shown(0), tick(T + W + L - 2 + D), tick(watermark_ms + D))
    assert bench.joiner.watermark_ms == watermark_ms
    bench.put(said(t=T + W))
    bench.end()
    assert bench.fates() == {fate: 1}


@pytest.mark.parametrize(("watermark_ms", "fate"), [(T + W + L - 1, "trained"), (T + W + L, "late")])
def test_a_decision_that_comes_after_its_window_is_late(watermark_ms, fate):
    bench = Bench().put(tick(watermark_ms + D), decision(), shown(0), said())
    assert len(bench.end()) == (fate == "trained")
    assert bench.fates("decisions") == {fate: 1}
    assert bench.fates() == {"joined" if fate == "trained" else "late": 1}


@pytest.mark.parametrize(("missing_ms", "ready"), [(1, False), (0, True)])
def test_a_bucket_is_ready_when_the_watermark_is_w_and_l_beyond_its_end(missing_ms, ready):
    bench = Bench().put(decision(t=T + M - 1), shown(0, t=T + M), tick(T + M + W + L + D - missing_ms))
    assert len(bench.take().examples) == ready
    assert bench.joiner.trained_through_ms == (T + M if ready else T)
    assert bench.fates("decisions") == {"trained" if ready else "open": 1}


def test_buckets_come_in_order_with_the_empty_ones_passed_over():
    bench = Bench()
    for name, t in (("z", T + 5), ("y", T + 5), ("c", T + M - 1), ("b", T + 3 * M)):
        bench.put(decision(name, t), shown(0, name=name, t=t))
    bench.put(tick(T + 9 * M + W + L + D + 1))
    buckets = [bench.joiner.take_bucket() for _ in range(3)]
    assert [bucket and (bucket.index, [e.decision.decision_id for e in bucket.examples]) for bucket in buckets] == [
        (T // M, ["y", "z", "c"]),
        (T // M + 3, ["b"]),
        None,
    ]
    assert bench.joiner.trained_through_ms == T + 9 * M


# What does not fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"token": "d.forged"}, {"token": "d"}, {"user": "v"}, {"slot": SLOTS}, {"slot": 2**32 - 1}], ids=str)
def test_what_does_not_fit_the_logged_decision_is_forged(wrong):
    bench = Bench().put(decision(), shown(0), said(**wrong))
    where = {key: value for key, value in wrong.items() if key != "slot"}
    bench.put(shown(1, wrong.get("slot", 2), event_id="other", **where))
    assert [outcome(example) for example in bench.end()] == [{0: 0.0}]
    assert bench.fates() == {"forged": 1}
    assert bench.fates("exposures") == {"joined": 1, "forged": 1, "slots_shown": 1}


def test_a_decision_id_reused_is_quarantined_and_the_first_one_stands():
    thief = decision(t=T + 1, user="thief")
    bench = Bench().put(decision(), thief, shown(0), said(), said(1, user="thief", event_id="x"))
    bench.put(tick(T + W + L + D), thief)  # closed, and still remembered
    (example,) = bench.end()
    assert (example.decision.user_id, outcome(example)) == ("u", {0: 1.0})
    assert bench.fates("decisions") == {"trained": 1, "quarantined": 2}
    assert [(q.partition, q.offset, q.reason) for q in bench.joiner.quarantined] == [(0, o, "decision_id reused") for o in (1, 6)]
    bench.put(decision())  # forgotten by now, and late for ever
    assert bench.fates("decisions") == {"trained": 1, "quarantined": 2, "late": 1}


@pytest.mark.parametrize("variant", ["a", "b"])
def test_a_decision_appended_twice_is_one_decision_and_a_copy(variant):
    """A producer's retry: the same bytes, while the decision is open, when it closed, and until it is forgotten."""
    once = Bench().put(decision(variant=variant), shown(0), said())
    again = Bench().put(decision(variant=variant), decision(variant=variant), shown(0), said(), decision(variant=variant))
    for bench in (once, again):
        bench.put(tick(T + 2 * (W + L) - 1 + D))
    again.put(decision(variant=variant))
    assert [outcome(example) for example in again.end()] == [outcome(example) for example in once.end()]
    assert (again.joiner.books().copies, again.joiner.books().quarantined) == (3, {})
    assert again.fates("decisions") == once.fates("decisions")


@pytest.mark.parametrize("other", [decision(t=T + 1), decision(user="thief"), decision(policy_version=7)], ids=["t", "user", "version"])
def test_another_decision_under_the_id_of_an_open_one_is_no_copy(other):
    bench = Bench().put(decision(), other)
    assert (bench.joiner.books().copies, bench.joiner.books().quarantined) == (0, {"decision_id reused": 1})


def test_what_is_said_under_the_token_of_another_decision_earns_nothing_there_or_here():
    bench = Bench().put(decision(), shown(0), decision("e", user="v"), shown(0, name="e", user="v"))
    bench.put(said(token="e.signed"), said(user="v", event_id="x"), said(token="e", user="v", event_id="y"))
    assert [outcome(example) for example in bench.end()] == [{0: 0.0}, {0: 0.0}]
    assert bench.fates() == {"forged": 3}


def test_a_flood_of_clicks_on_one_decision_is_one_click():
    bench = Bench(watch=False).put(decision(), shown(0), *[said(t=T + 1, event_id=f"{number:04}") for number in range(2000)])
    assert [outcome(example) for example in bench.end()] == [{0: 1.0}]
    assert bench.fates() == {"joined": 1, "duplicate": 1999}


def test_foreign_decisions_and_what_speaks_of_them_are_counted_and_nothing_else():
    bench = Bench().put(said(t=T + 1), decision(variant="b"), shown(0), said(), decision("i", variant="imported"), said(name="i"))
    bench.put(shown(0, name="i"))
    assert bench.end() == []
    assert bench.fates("decisions") == {"foreign": 2}
    assert bench.fates() == {"foreign": 3}
    assert bench.fates("exposures") == {"foreign": 2}


def test_imported_decisions_teach_when_asked_to_and_are_never_own():
    config = JoinConfig(variant="a", window_ms=W, lateness_ms=L, disorder_ms=D, bucket_ms=M, teach_imported=True)
    bench = Bench(config).put(decision(variant="imported"), shown(0), said(), said(event_id="again"), said(user="v", event_id="forged"))
    bench.put(decision("own"), shown(0, name="own"), decision("b", variant="b"), shown(0, name="b"))
    assert [(e.decision.decision_id, e.own, outcome(e)) for e in bench.end()] == [("d", False, {0: 1.0}), ("own", True, {0: 0.0})]
    books = bench.joiner.books()
    assert (bench.fates("decisions"), books.taught, bench.fates()) == ({"trained": 1, "foreign": 2}, 1, {"foreign": 3})


def test_the_smallest_event_time_and_id_counts_whatever_came_first():
    claims = [said(value=v, t=T + t, event_id=e) for v, t, e in ((1, 9, "a"), (2, 8, "z"), (3, 8, "y"), (4, 10, "b"))]
    claims += [said(1, t=T + 20, event_id="y"), shown(0, 1, t=T + 2), shown(1, t=T + 1, event_id="again")]  # an event id counts once
    for seed in range(20):
        random.Random(seed).shuffle(claims)
        bench = Bench().put(decision(), *claims)
        assert [(outcome(e), e.append_times_ms) for e in bench.end()] == [({0: 3.0, 1: 0.0}, (T + 1, T + 2, T + 8))]
        assert bench.fates() == {"joined": 1, "duplicate": 4}
        assert bench.fates("exposures") == {"joined": 2, "slots_shown": 2, "slots_repeated": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), MAX_VALUE * 1.01])
def test_a_value_that_is_no_number_is_quarantined(value):
    bench = Bench().put(decision(), shown(0), said(value=value), said(value=1.0, event_id="good", t=T + 5))
    assert [outcome(example) for example in bench.end()] == [{0: 1.0}]
    assert bench.fates() == {"quarantined": 1, "joined": 1}


def test_what_cannot_be_read_is_quarantined_and_counted():
    bodyless, newer = Event(event_id="e", user_id="u", event_time_ms=T), b"\x08\x02" + encode(tick(T), T)[2:]
    bench = Bench().put(b"\xff\xff", b"", newer, bodyless, decision(""), decision(t=-1), Control(kind="rollback", event_time_ms=T))
    assert bench.joiner.books().quarantined == {
        "unreadable": 3,
        "event without a body": 1,
        "decision without an id": 1,
        "before 1970": 1,
    }
    assert [q.offset for q in bench.joiner.quarantined] == [0, 1, 2, 3, 4, 5]
    bench.put(*[b""] * (MAX_QUARANTINED + 100))
    assert (len(bench.joiner.quarantined), bench.joiner.books().quarantined["unreadable"]) == (MAX_QUARANTINED, MAX_QUARANTINED + 103)


def test_interactions_are_counted_apart_and_join_nothing():
    interaction = Event(event_id="i", user_id="u", event_time_ms=T, interaction=Interaction(item_id="item0", kind="click", value=1))
    bench = Bench().put(decision(), shown(0), interaction)
    assert [outcome(example) for example in bench.end()] == [{0: 0.0}]
    assert (bench.joiner.books().interactions, bench.fates()) == (1, {})


# Waiting for a decision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize(("watermark_ms", "known"), [(T + 2 * (W + L) - 1, True), (T + 2 * (W + L), False)])
def test_what_became_of_a_decision_is_forgotten_as_long_after_it_closed_as_it_was_open(watermark_ms, known, settled):
    bench = Bench(watch=settled).put(decision(), decision("f", variant="b"), tick(T + 2 * (W + L) - 2 + D), tick(watermark_ms + D))
    bench.put(said(), said(name="f"), decision(), decision("f", variant="b"))
    assert bench.fates() == ({"late": 1, "foreign": 1} if known else {"orphan": 2})
    assert bench.fates("decisions") == {"unexposed": 1, **({"foreign": 1} if known else {"foreign": 2, "late": 1})}


@pytest.mark.parametrize(("watermark_ms", "waits"), [(T + D - 1, True), (T + D, False)])
@pytest.mark.parametrize("settled", [False, True])
def test_an_event_waits_for_its_decision_until_the_watermark_is_d_beyond_it(watermark_ms, waits, settled):
    bench = Bench(watch=settled).put(tick(T + D), shown(0), said(), tick(watermark_ms + D))
    if settled:
        assert bench.fates() == {"open" if waits else "orphan": 1}
    bench.put(decision(t=T + 1))
    assert len(bench.end()) == waits
    assert (bench.fates(), bench.fates("decisions")) == (({"joined": 1}, {"trained": 1}) if waits else ({"orphan": 1}, {"unexposed": 1}))


def test_what_comes_too_late_to_wait_is_an_orphan_at_once():
    bench = Bench().put(tick(T + 2 * D), shown(0), said(), said(t=T + 1))
    assert bench.fates() == {"orphan": 1, "open": 1}
    assert bench.fates("exposures") == {"orphan": 1}
    bench.put(tick(T + 9 * D))
    assert bench.fates() == {"orphan": 2}


# Time -----------------------------------------------------------------------------------------------------------------


def test_an_idle_partition_holds_the_others_until_it_is_ticked():
    bench = Bench(num_partitions=2).put(decision(), shown(0), tick(2 * T))
    assert (bench.take().examples, bench.joiner.watermark_ms, bench.joiner.trained_through_ms) == ([], None, 0)
    bench.put(tick(T), partition=1)
    assert (bench.take().examples, bench.joiner.watermark_ms) == ([], T - D)
    bench.put(tick(2 * T), partition=1)
    assert len(bench.take().examples) == 1


@pytest.mark.parametrize("skew_ms", [-3_600_000, 3_600_000])
def test_a_client_whose_clock_is_an_hour_off_earns_nothing_and_disturbs_nobody(skew_ms):
    t = 2 * 3_600_000
    bench = Bench().put(decision(t=t), shown(0, t=t), decision("e", t=t, user="v"), shown(0, name="e", t=t, user="v"))
    bench.put(said(t=t + 10), said(name="e", t=t + 10 + skew_ms, user="v", event_id="skewed"), append_time_ms=t + 10)
    bench.put(tick(2 * t)).take()
    early = skew_ms < 0  # a slow clock says it clicked before it was asked: inside the window all the same
    assert {example.decision_id: outcome(example)[0] for example in bench.examples} == {"d": 1.0, "e": float(early)}
    assert bench.fates() == ({"joined": 2} if early else {"joined": 1, "quarantined": 1})


def test_client_events_never_move_the_watermark():
    hour = 3_600_000
    fast, slow = 2 * hour, hour
    bench = Bench().put(decision(t=slow + hour), shown(0, t=slow + hour))
    bench.put(said(t=fast + hour, event_id="fast"), append_time_ms=slow + hour)
    assert bench.joiner.books().quarantined == {"from the future": 1}
    bench.put(said(1, t=fast + hour, event_id="fast and appended late"))
    bench.put(said(t=slow, event_id="slow"), append_time_ms=slow + hour)
    assert bench.joiner.watermark_ms == slow + hour - D
    bench.put(tick(slow + 2 * hour)).take()
    assert [outcome(example) for example in bench.examples] == [{0: 1.0}]
    assert bench.fates() == {"joined": 1, "quarantined": 1, "late": 1}


@pytest.mark.parametrize("body", [decision("x", t=T + FUTURE + 1), tick(T + FUTURE + 1), tick(4_102_444_800_000)], ids=["d", "t", "2100"])
def test_one_record_from_the_future_is_quarantined_and_moves_nothing(body):
    bench = Bench().put(decision(), shown(0)).put(body, append_time_ms=T)
    assert bench.joiner.watermark_ms == T - D
    assert bench.joiner.books().quarantined == {"from the future": 1}
    bench.put(tick(T + FUTURE), append_time_ms=T)
    assert bench.joiner.watermark_ms == T + FUTURE - D
    bench.put(said())
    assert [outcome(example) for example in bench.end()] == [{0: 1.0}]


# What a learner asks --------------------------------------------------------------------------------------------------


def test_user_memory_is_needed_from_the_oldest_decision_not_yet_taken():
    bench = Bench(num_partitions=2).put(tick(T), decision("x", memory_offset=40), shown(0, name="x"), decision("y", t=T + M))
    assert [bench.joiner.min_open_memory_offset(partition) for partition in (0, 1)] == [3, None]
    bench.put(decision("z", memory_offset=2, t=T + 2 * M), tick(T + 2 * M))
    assert bench.joiner.min_open_memory_offset(0) == 2
    bench.put(decision("old", t=T + M, memory_offset=1, user="v"), shown(0, name="old", t=T + M, user="v"), tick(T + 3 * M))
    assert (bench.joiner.min_open_memory_offset(0), bench.fates("decisions")) == (1, {"open": 3, "unexposed": 1})
    bench.end()
    assert bench.joiner.min_open_memory_offset(0) is None


def test_what_is_asked_in_between_leaves_no_trace_in_a_snapshot():
    log = [decision("x", t=T + 20), shown(0, name="x", t=T + 20), decision("y"), shown(0, name="y")]
    log += [tick(T + W + L + D + later) for later in (-2, 10, 30)]  # all within one second
    log += [decision("f", t=0, variant="b"), said(name="q", t=T + 2 * W), said(name="p", t=T + 2 * W)]
    log += [said(name="q", t=T + 2 * W)]
    asked, left_alone = Bench().put(*log), Bench(watch=False).put(*log)
    assert (left_alone.fates("decisions"), left_alone.fates()) == ({"open": 2, "foreign": 1}, {"open": 3})
    assert left_alone.joiner.snapshot() == asked.joiner.snapshot()
    restored = Joiner.restore(CONFIG, asked.joiner.snapshot())
    assert restored.snapshot() == asked.joiner.snapshot()


def test_a_joiner_that_nobody_asks_lets_go_of_what_is_over():
    bench = Bench(watch=False)
    for number in range(50):
        bench.put(decision(f"{number}", t=T + number * M), said(name=f"unknown {number}", t=T + number * M))
    join = bench.joiner._partitions[0]
    known = sum(len(join.table.gone(state)[0]) for state in (GONE_LATE, GONE_FOREIGN, GONE_GAP))
    assert [num <= 5 for num in (join.table.num_open, known, len(join.waiting))] == [True] * 3
    assert sorted(filter(None, join.told)) == sorted(join.told[slot] for slot in join.table.open_slots())


def test_a_decision_that_closed_unexposed_needs_no_memory_even_before_anybody_looks():
    bench = Bench(watch=False).put(decision(), tick(T + W + L - 1 + D))
    assert bench.joiner.min_open_memory_offset(0) == 0
    bench.put(tick(T + W + L + D))
    assert bench.joiner.min_open_memory_offset(0) is None


def test_stale_examples_are_moved_from_trained_and_no_more_than_there_are():
    bench = Bench().put(decision(), shown(0))
    bench.end()
    with pytest.raises(ValueError, match=r"withdraw\(2\); 1 "):
        bench.joiner.withdraw(2, "stale")
    bench.joiner.withdraw(1, "stale")
    assert (bench.fates("decisions"), bench.joiner.books().balanced) == ({"stale": 1}, True)


def test_refused_examples_are_counted_by_why_and_stay_so():
    bench = Bench().put(decision(), shown(0))
    bench.end()
    bench.joiner.refuse(1, "a gate")
    again = Joiner.restore(CONFIG, bench.joiner.snapshot())
    for joiner in (bench.joiner, again):
        books = joiner.books()
        assert (books.decisions["refused"], books.decisions["trained"], books.refused, books.balanced) == (1, 0, {"a gate": 1}, True)


def test_books_that_lost_a_record_do_not_balance():
    bench = Bench().put(decision(), shown(0), said())
    bench.joiner._partitions[0].table.give_up()
    assert not bench.joiner.books().balanced


def test_an_offset_is_applied_once_and_gaps_are_no_matter():
    joiner = Joiner(CONFIG, 1)
    record = LogRecord(0, 7, b"", encode(tick(T), T))
    joiner.apply(0, [record])
    with pytest.raises(ValueError, match="offset 7 was applied before; the next is 8"):
        joiner.apply(0, [record])
    assert joiner.next_offset(0) == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window_ms": 0}, "window_ms is 0; .* between 1"),
        ({"lateness_ms": -1}, "lateness_ms is -1"),
        ({"bucket_ms": 10**12}, "bucket_ms is 10+; .*a year"),
        ({"variant": ""}, "variant is ''"),
        ({"reward": "joy"}, "'joy'; allowed"),
    ],
)
def test_a_config_out_of_range_names_the_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        JoinConfig(**{"variant": "a", **wrong})


def test_no_snapshot_is_refused():
    whole = Bench().put(decision(), shown(0)).joiner.snapshot()
    for broken in (b"\xff", b"", whole[:10], whole[:-1], whole + b"\0", whole[:20] + b"\xff" * (len(whole) - 20)):
        with pytest.raises(ValueError, match="snapshot"):
            Joiner.restore(CONFIG, broken)


def test_a_snapshot_of_another_schema_is_refused_by_its_number():
    snapshot = Bench().joiner.snapshot()
    with pytest.raises(ValueError, match="snapshot of schema 7; this program reads 2"):
        Joiner.restore(CONFIG, snapshot[:6] + b"\7\0" + snapshot[8:])
    with pytest.raises(ValueError, match="not a snapshot of a joiner of schema 2"):  # the first one was a bare message
        Joiner.restore(CONFIG, b"\x08\x01\x22\x00")


def test_parts_of_a_snapshot_stay_as_they_were():
    bench = Bench(watch=False).put(decision(), shown(0), *[said(event_id=f"{number:0100}") for number in range(50)])
    parts, whole = bench.joiner.snapshot_parts(), bench.joiner.snapshot()
    bench.put(said(event_id="later"), decision("e"))
    assert b"".join(parts) == whole != bench.joiner.snapshot()
