"""The real broker, once for the whole run, and a last line that says when there was none."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.broker import HOW_TO_GET_ONE, Broker, running_broker

NO_BROKER = pytest.StashKey[bool]()

torch.set_num_threads(1)  # as every command does: sums in one order, so the same bytes whatever ran before


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Kafka. Without one the test is skipped, and fails where CI=true."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as found:
        if found is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI=true and no Kafka broker: {HOW_TO_GET_ONE}", pytrace=False)
            request.config.stash[NO_BROKER] = True
            pytest.skip("no Kafka broker (the last line says how to get one)")
        yield found


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own summary, which stands in every run's last line and doesn't name what was left out."""
    if config.stash.get(NO_BROKER, False):
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(f"KAFKA TESTS WERE SKIPPED, no broker: {HOW_TO_GET_ONE}")
