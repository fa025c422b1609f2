"""The real broker, once for each process that runs tests, and a last line that says when there was none."""

import os
from collections.abc import Iterator

import pytest

from models.threads import one_thread
from tests.broker import HOW_TO_GET_ONE, Broker, running_broker

LONGEST = ("test_processes", "test_verify_crash")
NO_BROKER = "no Kafka broker (the last line says how to get one)"

one_thread()  # as every command does


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Kafka. Without one the test is skipped, and fails where CI=true."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as found:
        if found is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI=true and no Kafka broker: {HOW_TO_GET_ONE}", pytrace=False)
            pytest.skip(NO_BROKER)
        yield found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end of a run with several processes all but one would wait for them."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own summary, which stands in every run's last line and doesn't name what was left out."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    skipped = terminal.stats.get("skipped", ()) if terminal is not None else ()  # of all processes that ran tests
    if any(NO_BROKER in str(report.longrepr) for report in skipped):
        terminal.write_line(f"KAFKA TESTS WERE SKIPPED, no broker: {HOW_TO_GET_ONE}")
