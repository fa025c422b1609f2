"""The streaming benchmark at toy size: its stream joins whole, and nothing is said of what was not measured."""

from collections import Counter

from recsys.bench.stream import CONFIG, beside_others, cost_ratio, from_memory, growth, not_measured
from recsys.bench.stream_engines import told
from recsys.bench.stream_source import StreamSize, stream
from streaming.events import decode
from streaming.joiner import Joiner
from streaming.log import LogRecord
from tests.broker import Broker

SIZE = StreamSize(decisions=300, rate=100, partitions=2)


def test_every_decision_of_the_stream_is_shown_and_joined() -> None:
    joiner, entries = Joiner(CONFIG, 2), list(stream(SIZE))
    assert entries == list(stream(SIZE))
    for partition in range(2):
        values = [entry.value for entry in entries if entry.partition == partition]
        joiner.apply(partition, [LogRecord(partition, offset, b"", value) for offset, value in enumerate(values)])
    while joiner.take_bucket() is not None:
        pass
    books = joiner.books()
    assert (books.decisions["total"], books.decisions["trained"], books.quarantined) == (300, 300, {})
    assert books.feedback["total"] == books.feedback["joined"] > 50
    assert books.exposures["total"] == books.exposures["joined"] == 300


def test_what_others_do_joins_the_same_events() -> None:
    held: dict[str, object] = {}
    joined = Counter(told(decode(entry.value), held) for entry in stream(SIZE))
    assert joined[True] == sum(decode(entry.value).HasField("event") for entry in stream(SIZE))
    assert len(held) == 300


def test_rates_and_growth_are_there() -> None:
    rates = from_memory(200, seed=0)
    assert rates["join_events_per_s"] > 2 * rates["joined_per_s"] > 0
    found = growth([1_000, 2_000], seed=0, counted=5_000)
    assert [row["open_decisions"] for row in found["growth"]] == [1_000, 2_000]
    assert all(row["us_per_event"] > 0 for row in found["growth"])
    assert found["cost_ratio_1e6_to_1e4_open"] is None  # these are not 10⁴ and 10⁶
    assert cost_ratio([{"open_decisions": 10**4, "us_per_event": 8.0}, {"open_decisions": 10**6, "us_per_event": 6.0}]) == 0.75
    assert not_measured()["rows"] == []
    assert not_measured()["ratio_to_quix"] is None


def test_ours_and_kafka_alone_read_the_same_topic(broker: Broker) -> None:
    figures = beside_others(broker.bootstrap, 200, seed=0)
    rates = {row["engine"]: row["events_per_s"] for row in figures["rows"]}
    assert list(rates) == ["ours", "kafka-python alone", "quix", "quix join_interval", "bytewax"]
    assert rates["ours"] / rates["kafka-python alone"] == figures["share_of_consume_ceiling"]
