"""Finds a real Kafka broker for the tests. Knows nothing of what they do with it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "kafka"
IMAGE = "apache/kafka:4.2.1"
START_S = 120.0
JAVA = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
"""A broker lives for seconds or minutes here: it pays to compile quickly, 7 s of processor time a start in place of 11."""
HOW_TO_GET_ONE = (
    f"set RECSYS_TEST_KAFKA=HOST:PORT, or start Docker (it runs {IMAGE}), "
    "or put Java 17 on PATH beside ../shared/kafka (Maven too, where its libs/ is absent)"
)


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A running broker; `node` when it is ours to kill."""

    bootstrap: str
    node: "Node | None" = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A broker of ../shared/kafka/broker.py on its own directory; killed and started again it keeps data and port."""

    directory: Path
    libs: Path
    settings: tuple[str, ...] = ()
    """Of the broker, KEY=VALUE, beside the usual ones; taken at its first start."""
    port: int = 0

    def start(self) -> str:
        """Its bootstrap address, once it answers."""
        # A killed broker is let in again when its session has ended: 2 s instead of 9.
        settings = ("broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=200", *self.settings)
        try:
            return self._run("start", "--port", str(self.port), *(part for one in settings for part in ("--set", one))).strip()
        except subprocess.CalledProcessError:
            cluster = self.directory / "cluster.json"
            if not json.loads(cluster.read_text())["id"].startswith("-"):
                raise
            cluster.unlink()  # Kafka takes such an id for an option, and one in 64 is: another is drawn
            return self.start()

    def kill(self) -> None:
        """As a crash does it."""
        self._run("kill")

    def stop(self) -> None:
        self._run("stop")

    def _run(self, command: str, *options: str) -> str:
        script = [sys.executable, str(SHARED / "broker.py"), command, "--dir", str(self.directory), *options]
        done = subprocess.run(
            script, env={**os.environ, **JAVA, "KAFKA_LIBS": str(self.libs)}, stdout=subprocess.PIPE, text=True, check=True, timeout=START_S
        )
        return done.stdout


@contextlib.contextmanager
def running_broker(directory: Path) -> Iterator[Broker | None]:
    """The first that can be had, stopped at the end when it was started here; None when there is no way to one."""
    given = os.environ.get("RECSYS_TEST_KAFKA")
    if given:
        yield Broker(bootstrap=given)
    elif shutil.which("java") and (SHARED / "libs").is_dir():
        with _started(Node(directory=directory, libs=SHARED / "libs")) as broker:
            yield broker
    elif _answers("docker", "info"):
        with _docker_broker() as broker:
            yield broker
    elif shutil.which("java") and shutil.which("mvn") and (SHARED / "pom.xml").is_file():
        with _started(Node(directory=directory, libs=_maven_libs())) as broker:
            yield broker
    else:
        yield None


@contextlib.contextmanager
def _started(node: Node) -> Iterator[Broker]:
    bootstrap = node.start()
    try:
        yield Broker(bootstrap=bootstrap, node=node)
    finally:
        node.stop()


@contextlib.contextmanager
def _docker_broker() -> Iterator[Broker]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        # The port is the same inside and outside, so that the advertised address leads back to this broker.
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:{port + 1 if port < 65535 else port - 1}",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"1@localhost:{port + 1 if port < 65535 else port - 1}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    }
    environment = [part for name, value in settings.items() for part in ("--env", f"{name}={value}")]
    run = ["docker", "run", "--detach", "--rm", "--publish", f"127.0.0.1:{port}:{port}", *environment, IMAGE]
    container = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        # Docker's own proxy accepts connections long before Kafka answers; only a Kafka client can tell.
        client = ["/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", f"127.0.0.1:{port}"]
        deadline_s = time.monotonic() + START_S
        while not _answers("docker", "exec", container, *client):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{IMAGE} did not answer within {START_S:.0f} s")
        yield Broker(bootstrap=f"127.0.0.1:{port}")
    finally:
        subprocess.run(["docker", "kill", container], check=True, stdout=subprocess.DEVNULL)


def _maven_libs() -> Path:
    """The broker's jars by the shared pom, kept in the user's cache."""
    libs = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recsys" / "kafka-4.2.1"
    if not (libs / "complete").exists():
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={libs}"]
        subprocess.run(["mvn", "-q", "-B", "-f", str(SHARED / "pom.xml"), *goal], check=True)
        (libs / "complete").touch()
    return libs


def _answers(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
