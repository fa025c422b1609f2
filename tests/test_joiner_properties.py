"""The joiner against a batch reading of RELIABILITY.md, and against itself: whatever the order, the pieces and the repeats."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joins import CONFIG, SLOTS, Bench, D, L, T, W, decision, fingerprint, said, shown, tick

from streaming import partition_join
from streaming.events import encode
from streaming.joiner import Joiner
from streaming.log import LogRecord
from streaming.rewards import rule_named

PARTITIONS = 2
NAMES = [f"{number:032x}" for number in range(3)] + ["d3", "d4"]
"""Those of our servers are 32 digits; of others they can be anything."""
BRIEF = replace(CONFIG, window_ms=100, lateness_ms=30, disorder_ms=20, bucket_ms=100, teach_imported=True)
"""All within the second to which the joiner sweeps."""

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["click", "like", "dislike", "łike"])
values = st.sampled_from([1.0, 1.0, 0.0, -0.0, 2.5])
slot_numbers = st.integers(0, SLOTS)  # one of them out of range
after = st.one_of(st.integers(0, W + 2), st.sampled_from([0, W, W + 1, W + L + 1]))


@st.composite
def worlds(draw):
    """Records by partition, each with the time it happened: one decision per name, and what its clients say of it."""
    world = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(NAMES), unique=True))):
        t, partition = T + draw(st.integers(0, 3000)), number % PARTITIONS
        if draw(st.integers(0, 9)):  # else what follows is without a decision
            world.append((partition, t, decision(name, t, variant=draw(st.sampled_from("aaaab")))))
        for _ in range(draw(st.integers(0, 2))):
            te, slots = t + draw(after), draw(st.lists(slot_numbers, max_size=3))
            world.append((partition, te, shown(*slots, name=name, t=te, event_id=f"s{len(world)}")))
        for _ in range(draw(st.integers(0, 4))):
            te, user = t + draw(after), draw(st.sampled_from("uuuuuv"))
            value, token = (
                draw(st.sampled_from([1.0, 0.0, -2.5, float("nan")])),
                draw(st.sampled_from([None, None, None, f"{name}.forged"])),
            )
            event_id = draw(st.sampled_from([f"f{len(world)}", "the same"]))
            world.append((partition, te, said(draw(slot_numbers), draw(kinds), value, name, te, event_id, user, token)))
    ticks = draw(st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(T, T + 6000)), max_size=6))
    return world + [(partition, t, tick(t)) for partition, t in ticks]


def arrivals(world, seed, repeat=False):
    """The world as one log could hold it: each record at most D out of order, partitions in any turns, some of it repeated."""
    rng = random.Random(seed)
    held = [(t + rng.uniform(0, D), partition, encode(body, t)) for partition, t, body in world]
    if repeat:
        held += [(t + rng.choice([0, 1, D, W, W + L, 3 * (W + L)]), p, value) for t, p, value in held if rng.random() < 0.4]
    held.sort(key=lambda record: record[0])
    queues = [[value for _, p, value in held if p == partition] for partition in range(PARTITIONS)]
    log = []
    while any(queues):
        partition = rng.choice([p for p in range(PARTITIONS) if queues[p]])
        log += [(partition, queues[partition].pop(0)) for _ in range(min(len(queues[partition]), rng.randint(1, 5)))]
    return log


def joined(log, seed, poll):
    """The bench after the log; buckets are taken after some of the records, and at the end."""
    rng, bench = random.Random(seed), Bench(CONFIG, PARTITIONS, watch=bool(seed % 2))
    for partition, value in log:
        bench.put(value, partition=partition)
        if rng.random() < poll:
            bench.take()
    bench.end()
    return bench


def by_the_book(world):
    """What RELIABILITY.md says must come of a world: (name, {slot: reward}) in order, and the fates of decisions and feedback."""
    rule, examples, decisions, feedback = rule_named(CONFIG.reward), [], Counter(), Counter()
    made = {body.decision_id: body for _, _, body in world if body.DESCRIPTOR.name == "Decision"}
    says, shows = {name: [] for name in made}, {name: set() for name in made}
    for event in (body for _, _, body in world if body.DESCRIPTOR.name == "Event"):
        kind = event.WhichOneof("body")
        body = getattr(event, kind)
        d = made.get(body.decision_token.split(".")[0])
        misfit = misfit_of(event, body, d)
        if misfit is not None:
            feedback[misfit] += kind == "feedback"
        elif kind == "feedback":
            says[d.decision_id].append((event.event_time_ms, event.event_id, body.slot, body.kind, body.value))
        else:
            shows[d.decision_id].update(body.slots)
    for name, d in sorted(made.items(), key=lambda entry: (entry[1].event_time_ms, entry[0])):
        earned = earned_by(says[name], shows[name], feedback)
        decisions["foreign" if d.variant != "a" else "trained" if earned else "unexposed"] += 1
        if d.variant == "a" and earned:
            examples.append((name, {slot: rule(said) for slot, said in earned.items()}))
    return examples, decisions, +feedback


def misfit_of(event, body, d):
    """Why an event says nothing of its decision `d`, or None."""
    slots = [body.slot] if event.HasField("feedback") else body.slots
    if event.HasField("feedback") and body.value != body.value:
        return "quarantined"
    if d is None:
        return "orphan"
    if d.variant != "a":
        return "foreign"
    if event.user_id != d.user_id or body.decision_token != d.decision_token or any(slot >= SLOTS for slot in slots):
        return "forged"
    return "late" if event.event_time_ms > d.event_time_ms + W else None


def earned_by(says, shows, feedback):
    """Slot → kind → value of what counts; the rest is only counted in `feedback`."""
    ids, places, earned = set(), set(), {slot: {} for slot in sorted(shows)}
    for _, event_id, slot, kind, value in sorted(says):
        if event_id in ids or (slot, kind) in places:
            feedback["duplicate"] += 1
            continue
        ids.add(event_id)
        places.add((slot, kind))
        feedback["joined" if slot in earned else "unexposed"] += 1
        if slot in earned:
            earned[slot][kind] = value
    return earned


@settings(max_examples=250, deadline=None)
@given(worlds(), seeds)
def test_the_joiner_does_what_the_specification_says(world, seed):
    bench = joined(arrivals(world, seed), seed, poll=0.3)
    examples, decisions, feedback = by_the_book(world)
    assert [(e.decision.decision_id, dict(zip(e.shown, e.rewards, strict=True))) for e in bench.examples] == examples
    assert bench.fates("decisions") == decisions
    assert merged(bench.fates()) == merged(feedback)


def merged(feedback):
    """Forged and late as one: of a decision that closed only its fate is remembered, so a forgery that late is just late."""
    counts = Counter(feedback)
    counts["late"] += counts.pop("forged", 0)
    return +counts


@settings(max_examples=150, deadline=None)
@given(worlds(), seeds, seeds)
def test_order_pieces_and_repeats_change_no_example(world, seed, other):
    once = joined(arrivals(world, seed), seed, poll=1.0)
    again = joined(arrivals(world, other, repeat=True), other, poll=0.1)
    assert [fingerprint(e, with_offset=False) for e in again.examples] == [fingerprint(e, with_offset=False) for e in once.examples]


@st.composite
def chaos(draw):
    """Anything in any order: times all over, ids reused, forgeries, bytes that are no record. For BRIEF."""
    name, t = st.sampled_from(NAMES[1:4]), st.integers(T, T + 800)
    body = st.one_of(
        st.builds(decision, name, t, st.sampled_from(["a", "a", "b", "imported"])),
        st.builds(lambda name, t, slots: shown(*slots, name=name, t=t), name, t, st.lists(slot_numbers, max_size=3)),
        st.builds(said, slot_numbers, kinds, values, name, t, st.sampled_from("xyzł"), st.sampled_from("uuuv")),
        st.builds(tick, t),
    )
    records = st.lists(st.tuples(st.integers(0, PARTITIONS - 1), body, st.integers(0, 200)), max_size=60)
    # By time give or take, or the first tick would make all the rest late.
    log = sorted(draw(records), key=lambda record: record[1].event_time_ms + record[2])
    log = [(partition, encode(body, T + 700)) for partition, body, _ in log]
    for place, value in draw(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=4)), max_size=3)):
        log.insert(place, (0, value))
    return log


@settings(max_examples=200, deadline=None)
@given(chaos(), st.integers(0, 60), seeds)
def test_a_joiner_restored_anywhere_goes_on_as_if_nothing_had_been(log, cut, seed):
    rng = random.Random(seed)
    whole, parted = Bench(BRIEF, PARTITIONS), Bench(BRIEF, PARTITIONS)
    for number, (partition, value) in enumerate(log):
        take = rng.random() < 0.3
        for bench in (whole, parted):
            bench.put(value, partition=partition)
            if take:
                bench.take()
        if number == cut:
            snapshot = parted.joiner.snapshot()
            parted.joiner = Joiner.restore(BRIEF, snapshot)
            assert parted.joiner.snapshot() == snapshot == whole.joiner.snapshot()
        assert parted.joiner.books() == whole.joiner.books()
        assert [parted.joiner.min_open_memory_offset(p) for p in (0, 1)] == [whole.joiner.min_open_memory_offset(p) for p in (0, 1)]
    assert parted.joiner.snapshot() == whole.joiner.snapshot()
    assert [fingerprint(e) for e in parted.end()] == [fingerprint(e) for e in whole.end()]
    assert parted.joiner.snapshot() == whole.joiner.snapshot()
    assert parted.joiner.trained_through_ms == whole.joiner.trained_through_ms


@settings(max_examples=400, deadline=None)
@given(chaos(), st.lists(st.integers(1, 30), min_size=60, max_size=60))
def test_polls_of_any_size_come_to_the_same_bytes(log, sizes):
    """Read one by one, and as columns."""
    one_by_one, polled = Joiner(BRIEF, PARTITIONS), Joiner(BRIEF, PARTITIONS)
    for partition in range(PARTITIONS):
        values = [value for p, value in log if p == partition]
        records = [LogRecord(partition, offset, b"", value) for offset, value in enumerate(values)]
        for record in records:
            one_by_one.apply(partition, [record])
            assert one_by_one.books().balanced
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partition_join, "FEW", 0)
            for size in sizes:
                polled.apply(partition, records[:size])
                records = records[size:]
    assert polled.snapshot() == one_by_one.snapshot()
    assert polled.books() == one_by_one.books()
    for joiner in (polled, one_by_one):
        for partition in range(PARTITIONS):
            joiner.apply(partition, [LogRecord(partition, 99, b"", encode(tick(2 * T), 2 * T))])
    assert [fingerprint(e) for e in examples_of(polled)] == [fingerprint(e) for e in examples_of(one_by_one)]


def examples_of(joiner):
    while (bucket := joiner.take_bucket()) is not None:
        yield from bucket.examples


@settings(max_examples=400, deadline=None)
@given(chaos(), st.booleans())
def test_pieces_and_turns_of_partitions_change_nothing(log, in_turns):
    """Nobody asks the second joiner anything before its end, so only its own sweeping has tidied it up."""
    asked, left_alone = Bench(BRIEF, PARTITIONS), Bench(BRIEF, PARTITIONS, watch=False)
    for partition, value in log:
        asked.put(value, partition=partition).take()
    for partition, value in sorted(log, key=lambda record: record[0]) if in_turns else log:
        left_alone.put(value, partition=partition)
    left_alone.take()
    assert [fingerprint(e) for e in left_alone.examples] == [fingerprint(e) for e in asked.examples]
    if not in_turns:
        assert left_alone.joiner.snapshot() == asked.joiner.snapshot()
    assert left_alone.joiner.books() == asked.joiner.books()
