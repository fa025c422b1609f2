"""TLS and SASL of a real broker: the settings of the environment reach it, and without the right ones nobody does."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from recsys.options import opened
from streaming.kafka_log import KafkaLog
from streaming.log import Entry, LogUnavailable
from tests.broker import Broker

USER, PASSWORD = "recsys", "a-password"
LOGIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'


@dataclass(frozen=True)
class Secure:
    """A broker with a door of each kind, and the certificates of one authority."""

    tls: str
    """Asks clients for a certificate."""
    sasl: str
    """Asks clients for a password."""
    directory: Path

    def of_tls(self) -> dict[str, str]:
        names = {"ssl_certfile": "client.crt", "ssl_keyfile": "client.key"}
        return {"security_protocol": "SSL", **self.authority(), **{name: str(self.directory / file) for name, file in names.items()}}

    def of_sasl(self) -> dict[str, str]:
        login = {"sasl_mechanism": "PLAIN", "sasl_plain_username": USER, "sasl_plain_password": PASSWORD}
        return {"security_protocol": "SASL_SSL", **self.authority(), **login}

    def authority(self) -> dict[str, str]:
        return {"ssl_cafile": str(self.directory / "ca.crt")}


@pytest.fixture(scope="module")
def secure(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    if broker.node is None:
        pytest.skip("this broker has no doors that are ours to choose")
    directory = tmp_path_factory.mktemp("secure")
    make_certificates(directory)
    ports = free_ports(4)  # two in a row for the broker's own
    tls, sasl = f"127.0.0.1:{ports[2]}", f"127.0.0.1:{ports[3]}"
    doors = f"PLAINTEXT://127.0.0.1:{ports[0]},SSL://{tls},SASL_SSL://{sasl}"
    settings = {
        "listeners": f"{doors},CONTROLLER://127.0.0.1:{ports[1]}",
        "advertised.listeners": doors,
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": directory / "server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": directory / "ca.crt",
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": LOGIN,
    }
    listed = tuple(f"{name}={value}" for name, value in settings.items())
    node = replace(broker.node, directory=directory / "kafka", settings=listed, port=ports[0])
    node.start()
    yield Secure(tls, sasl, directory)
    node.stop()


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(count)]
            sockets[0].bind(("127.0.0.1", 0))
            first = sockets[0].getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                for place, one in enumerate(sockets[1:], 1):
                    one.bind(("127.0.0.1", first + place))
                return [*range(first, first + count)]


def make_certificates(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    try:
        openssl("version")
    except FileNotFoundError:
        pytest.skip("no openssl to make certificates with")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
    for name in ("server", "client"):
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        openssl(*new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
    (directory / "server.pem").write_bytes(b"".join((directory / f"server.{part}").read_bytes() for part in ("key", "crt")))


def written_and_read(address: str, settings: Mapping[str, str], name: str) -> list[bytes]:
    with closing(KafkaLog(address, name, 1, security=settings)) as log:
        log.append([Entry(b"", name.encode(), 0)])
        return [record.value for record in log.read(0, 0)]


def test_with_a_certificate(secure: Secure) -> None:
    assert written_and_read(secure.tls, secure.of_tls(), "tls") == [b"tls"]


def test_with_a_password(secure: Secure) -> None:
    assert written_and_read(secure.sasl, secure.of_sasl(), "sasl") == [b"sasl"]


def test_from_the_environment(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in secure.of_sasl().items():
        monkeypatch.setenv(f"RECSYS_KAFKA_{name.upper()}", value)
    with closing(opened(f"kafka://{secure.sasl}/environment", ".items")) as log:
        log.append([Entry(b"", b"item", 0)])
        assert log.end_offsets() == [1]


@pytest.mark.parametrize("wrong", ["no certificate", "wrong password", "no encryption", "unknown authority"])
def test_without_the_right_ones_it_is_away(secure: Secure, wrong: str) -> None:
    address, settings = {
        "no certificate": (secure.tls, secure.authority() | {"security_protocol": "SSL"}),
        "wrong password": (secure.sasl, secure.of_sasl() | {"sasl_plain_password": "another"}),
        "no encryption": (secure.tls, {}),
        "unknown authority": (secure.sasl, secure.of_sasl() | {"ssl_cafile": str(secure.directory / "client.crt")}),
    }[wrong]
    with closing(KafkaLog(address, "refused", 1, security=settings, timeout_s=2)) as log:
        for call in (log.end_offsets, lambda: log.append([Entry(b"", b"", 0)])):
            with pytest.raises(LogUnavailable):
                call()
