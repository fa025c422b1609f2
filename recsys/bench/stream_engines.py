"""Other stream processors on the same topic, each in a process of its own: `python -m recsys.bench.stream_engines`.

Knows nothing of our joiner. One JSON object comes in on standard input; the last line on standard output is one JSON object.
What each does is less than ours: an event finds its decision and is checked against it; nothing closes, nothing is counted.
"""

import json
import sys
import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from streaming.proto.records_pb2 import Record

QUIET_S = 15
"""An engine that got nothing for so long has read everything; the time is that of its last message."""


class Timed:
    """How many messages came, and when the first and the last of them."""

    def __init__(self) -> None:
        self.events = self.joined = 0
        self.first_s = self.last_s = 0.0

    def count(self, joined: bool) -> None:
        """One more."""
        self.last_s = time.perf_counter()
        self.first_s = self.first_s or self.last_s
        self.events += 1
        self.joined += joined


def main() -> None:
    """Read the job, do it, write the figures."""
    job = json.load(sys.stdin)
    timed = Timed()
    ENGINES[job["engine"]](job, timed)
    figures = {"events": timed.events, "joined": timed.joined, "seconds": timed.last_s - timed.first_s}
    sys.stdout.write(f"\n{json.dumps(figures)}\n")


def consume(job: dict[str, Any], timed: Timed) -> None:
    """kafka-python alone, as fast as it goes: records are unpacked and dropped."""
    consumer = KafkaConsumer(
        bootstrap_servers=job["bootstrap"], group_id=None, auto_offset_reset="earliest", max_poll_records=10_000, metrics_enabled=False
    )
    consumer.assign([TopicPartition(job["topic"], partition) for partition in range(job["partitions"])])
    timed.first_s = time.perf_counter()
    while timed.events < job["records"]:
        timed.events += sum(len(records) for records in consumer.poll(timeout_ms=1000).values())
    timed.last_s = time.perf_counter()
    consumer.close()


def told(record: Record, held: dict[str, Any]) -> bool:
    """Put a record into a dict of decisions; whether it was joined to one."""
    if record.HasField("decision"):
        decision = record.decision
        held[decision.decision_id] = [decision.decision_token, decision.user_id, len(decision.item_ids), []]
        return False
    if not record.HasField("event"):
        return False
    event = record.event
    spoken = event.exposure if event.HasField("exposure") else event.feedback
    found = held.get(spoken.decision_token.partition(".")[0])
    if found is None or spoken.decision_token != found[0] or event.user_id != found[1]:
        return False
    found[3].append(event.event_time_ms)
    return True


def bytewax(job: dict[str, Any], timed: Timed) -> None:
    """A stateful step whose state is a dict of the partition's decisions; no recovery store."""
    import bytewax.operators as op  # noqa: PLC0415 - only where it is measured
    from bytewax.connectors.kafka import KafkaSource  # noqa: PLC0415
    from bytewax.dataflow import Dataflow  # noqa: PLC0415
    from bytewax.testing import TestingSink, run_main  # noqa: PLC0415

    def step(held: dict[str, Any] | None, value: bytes) -> tuple[dict[str, Any], list[str]]:
        held = {} if held is None else held
        timed.count(told(Record.FromString(value), held))
        return held, []

    flow = Dataflow("join")
    read = op.input("read", flow, KafkaSource([job["bootstrap"]], [job["topic"]], tail=False, batch_size=10_000))
    keyed = op.map("key", read, lambda message: (str(message.partition), message.value))
    op.output("drop", op.stateful_flat_map("join", keyed, step), TestingSink([]))
    run_main(flow)


def quix(job: dict[str, Any], timed: Timed) -> None:
    """Stateful apply, the state by user, with its changelog topic."""

    def step(value: bytes, state: Any) -> None:
        record = Record.FromString(value)
        if record.HasField("decision"):
            held: dict[str, Any] = {}
            told(record, held)
            for decision_id, decision in held.items():
                state.set(decision_id, decision)
            timed.count(False)
            return
        event = record.event
        decision_id = (event.exposure if event.HasField("exposure") else event.feedback).decision_token.partition(".")[0]
        decision = state.get(decision_id) if decision_id else None
        joined = decision is not None and told(record, {decision_id: decision})
        if joined:
            state.set(decision_id, decision)
        timed.count(joined)

    app = _application(job)
    app.dataframe(_topic(app, job["topic"])).apply(step, stateful=True)
    app.run(count=job["records"], timeout=QUIET_S, collect=False)


def quix_join(job: dict[str, Any], timed: Timed) -> None:
    """`join_interval` of a topic of decisions and one of events, both keyed by decision, with changelogs."""
    app = _application(job)
    decisions, events = (app.dataframe(_topic(app, f"{job['topic']}.{name}")).apply(_counting(timed)) for name in ("left", "right"))
    joined = events.join_interval(
        decisions, how="inner", on_merge=lambda event, decision: (decision, event), grace_ms=65_000, backward_ms=65_000, forward_ms=5_000
    )
    joined.apply(lambda pair: timed.__setattr__("joined", timed.joined + 1))
    app.run(count=job["records"], timeout=QUIET_S, collect=False)


def _counting(timed: Timed) -> Any:
    def step(value: bytes) -> dict[str, str]:
        """What the join needs of a record: its state holds JSON."""
        record = Record.FromString(value)
        timed.count(False)
        if record.HasField("decision"):
            return {"token": record.decision.decision_token, "user": record.decision.user_id}
        event = record.event
        spoken = event.exposure if event.HasField("exposure") else event.feedback
        return {"token": spoken.decision_token, "user": event.user_id}

    return step


def _application(job: dict[str, Any]) -> Any:
    from quixstreams import Application  # noqa: PLC0415 - only where it is measured

    return Application(
        broker_address=job["bootstrap"],
        consumer_group=f"{job['topic']}.{job['engine'].replace(' ', '-')}",
        auto_offset_reset="earliest",
        state_dir=job["state_dir"],
        loglevel="ERROR",
        request_timeout=60,
    )


def _topic(app: Any, name: str) -> Any:
    return app.topic(name, key_deserializer="bytes", value_deserializer="bytes")


ENGINES = {"kafka-python alone": consume, "bytewax": bytewax, "quix": quix, "quix join_interval": quix_join}

if __name__ == "__main__":
    main()
