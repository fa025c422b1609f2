"""Which log a URL means. Knows nothing of what is written to it.

sqlite:///runs/log.db          a file, relative to the working directory; four slashes for an absolute path
kafka://HOST:PORT/TOPIC        a topic; several brokers with commas
memory:                        this process's memory: a new, empty log each time
"""

from collections.abc import Mapping

from streaming.log import EventLog, MemoryLog
from streaming.sqlite_log import SqliteLog

EVENTS = "events"
ITEMS_SUFFIX = ".items"
FORMS = "sqlite:///PATH (four slashes for an absolute path), kafka://HOST:PORT/TOPIC, memory:"


def open_log(
    url: str,
    topic_suffix: str = "",
    num_partitions: int = 4,
    *,
    kafka_security: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    existing: bool = False,
) -> EventLog:
    """The log at `url`; `topic_suffix` ".items" means the catalogue's stream beside it, which has one partition.

    `timeout_s` is how long a call waits before LogUnavailable; with `existing` nothing is made (see SqliteLog and KafkaLog).
    ValueError for another kind of URL; LogUnavailable when a file can't be opened (a Kafka that is away is found out by the first call).
    """
    if topic_suffix == ITEMS_SUFFIX:
        num_partitions = 1
    if url == "memory:":
        return MemoryLog(num_partitions)
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        return SqliteLog(rest.removeprefix("///"), EVENTS + topic_suffix, num_partitions, timeout_s=timeout_s, existing=existing)
    bootstrap, _, topic = rest.removeprefix("//").partition("/")
    if scheme == "kafka" and rest.startswith("//") and bootstrap and topic and "/" not in topic:
        # Here and not above: who has no Kafka shouldn't pay for importing its client.
        from streaming.kafka_log import KafkaLog  # noqa: PLC0415

        return KafkaLog(bootstrap, topic + topic_suffix, num_partitions, security=kafka_security, timeout_s=timeout_s, existing=existing)
    raise ValueError(f"no log at {url!r}; allowed are {FORMS}")
