"""A small log to write by hand and a bench to join it on, for the tests of the joiner."""

from streaming.events import Decision, Event, Exposure, Feedback, Tick, encode
from streaming.joiner import JoinConfig, Joiner
from streaming.log import LogRecord

W, L, D, M, FUTURE = 1000, 300, 200, 1000, 500
CONFIG = JoinConfig(
    variant="a", window_ms=W, lateness_ms=L, disorder_ms=D, bucket_ms=M, future_ms=FUTURE, reward="weighted:click=1,like=2,dislike=-1"
)
T = 100_000  # when most decisions of these tests are made: the start of a bucket
SLOTS = 3


# What can be in a log -------------------------------------------------------------------------------------------------


def decision(name="d", t=T, variant="a", user="u", memory_offset=-1, **others):
    items = [f"item{slot}" for slot in range(SLOTS)]
    return Decision(
        decision_id=name,
        user_id=user,
        event_time_ms=t,
        variant=variant,
        decision_token=f"{name}.signed",
        item_ids=items,
        memory_offset=memory_offset,
        **others,
    )


def shown(*slots, name="d", t=T, event_id="shown", user="u", token=None):
    exposure = Exposure(decision_token=token or f"{name}.signed", slots=slots)
    return Event(event_id=event_id, user_id=user, event_time_ms=t, exposure=exposure)


def said(slot=0, kind="click", value=1.0, name="d", t=T, event_id="said", user="u", token=None):
    feedback = Feedback(decision_token=token or f"{name}.signed", slot=slot, kind=kind, value=value)
    return Event(event_id=event_id, user_id=user, event_time_ms=t, feedback=feedback)


def tick(t):
    return Tick(event_time_ms=t)


class Bench:
    """A joiner and the log it is fed. Asserts after every record that the books balance, unless the joiner is to be left alone."""

    def __init__(self, config=CONFIG, num_partitions=1, watch=True):
        self.joiner = Joiner(config, num_partitions)
        self.watch = watch
        self.examples = []

    def put(self, *bodies, partition=0, append_time_ms=None):
        for body in bodies:
            value = body if isinstance(body, bytes) else encode(body, body.event_time_ms if append_time_ms is None else append_time_ms)
            self.joiner.apply(partition, [LogRecord(partition, self.joiner.next_offset(partition), b"", value)])
            assert not self.watch or self.joiner.books().balanced
        return self

    def take(self):
        while (bucket := self.joiner.take_bucket()) is not None:
            assert all(bucket.start_ms <= e.decision.event_time_ms < bucket.end_ms for e in bucket.examples)
            assert self.joiner.trained_through_ms == bucket.end_ms == (bucket.index + 1) * self.joiner.config.bucket_ms
            self.examples += bucket.examples
        assert not self.watch or self.joiner.books().balanced
        return self

    def end(self):
        """Close all windows and take all buckets; the examples."""
        for partition in range(len(self.joiner._partitions)):
            self.put(tick(10 * T), partition=partition)
        self.take()
        assert self.joiner.books().balanced
        return self.examples

    def fates(self, kind="feedback"):
        """The fates that happened."""
        return {fate: count for fate, count in self.joiner.books().as_dict()[kind].items() if count and fate != "total"}


def fingerprint(example, with_offset=True):
    where = (example.partition, example.offset if with_offset else None)
    body = example.decision.SerializeToString(deterministic=True)
    return repr((body, where, example.shown, example.rewards, example.feedback, example.own, example.append_times_ms))


def outcome(example):
    return dict(zip(example.shown, example.rewards, strict=True))
