"""The end of a server under load, and clients that are slow: what was answered is in the log, and nobody waits for the slow."""

import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import grpc
import pytest

from recsys.client import Client, Unreachable
from recsys.server import SERVICE
from streaming.address import open_log
from streaming.events import decode
from streaming.log import EventLog
from streaming.proto.recommender_pb2 import RecommendRequest
from tests.artifacts import item, item_ids
from tests.running import started
from tests.serving import Live, refused, serving, wait_for

USERS = 8


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with serving(tmp_path) as found:
        yield found


def answers(client: Client) -> bool:
    try:
        client.status()
    except Unreachable:
        return False
    return True


def decision_ids(log: EventLog) -> Counter[str]:
    records = [decode(record.value) for partition in range(log.num_partitions) for record in log.read(partition, 0)]
    return Counter(record.decision.decision_id for record in records if record.WhichOneof("body") == "decision")


def test_sigterm_under_load_answers_what_it_took_and_takes_no_more(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    url = f"sqlite:///{tmp_path / 'log.db'}"
    process = started("serve", "--log", url, "--state", str(tmp_path / "state"), "--preset", "tiny", "--address", address)
    asked, answered, refusals = count(), [], []

    def user(client: Client) -> None:
        while not refusals:
            try:
                answered.append(client.recommend(RecommendRequest(user_id=f"user{next(asked)}")).decision_id)
            except Unreachable as error:
                refusals.append(str(error).partition(":")[0])

    with ExitStack() as stack:
        stack.callback(process.communicate)
        stack.callback(process.kill)
        wait_for(lambda: trial(address), seconds=90)
        client = stack.enter_context(Client(address))
        client.upsert([item(name) for name in item_ids(30)])
        with ThreadPoolExecutor(USERS) as pool:
            users = [pool.submit(user, client) for _ in range(USERS)]
            wait_for(lambda: len(answered) > 10 * USERS)
            process.send_signal(signal.SIGTERM)
            for one in users:
                one.result(timeout=30)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert set(refusals) == {"UNAVAILABLE"}
    assert decision_ids(open_log(url)) == Counter(answered)


def trial(address: str) -> bool:
    with Client(address) as client:
        return answers(client)


# Clients that never finish what they began ----------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def headers(fields: dict[str, str]) -> bytes:
    """HPACK literals that are not indexed (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields.items())


PATH = {":method": "POST", ":scheme": "http", ":path": f"/{SERVICE}/Recommend", ":authority": "x"}
CALL = frame(1, 4, 1, headers(PATH | {"content-type": "application/grpc", "te": "trailers"}))
BEGUN = {
    "nothing": b"",
    "half a greeting": b"PRI * HTTP/2.0\r\n",
    "half a header": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + CALL[:20],
    "half a request": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + CALL + frame(0, 0, 1, b"\0\0\0\0\x09\x0a"),
}


@contextmanager
def slow_clients(live: Live, begun: bytes, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", live.server.port), timeout=20)) for _ in range(number)]
        for one in sockets:
            one.sendall(begun)
        yield sockets


def answered_soon(live: Live) -> bool:
    try:
        live.stub.Recommend(RecommendRequest(user_id="ann"), timeout=0.5)
    except grpc.RpcError:
        return False
    return True


def test_requests_that_do_not_come_are_given_up_so_that_others_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, max_workers=2, request_s=0.05, grace_s=0.1) as live, slow_clients(live, BEGUN["half a request"], 6):
        wait_for(lambda: not answered_soon(live))  # what the slow ones sent is taken in by threads that need not hurry
        call = live.stub.Recommend.future(RecommendRequest(user_id="bob"))
        wait_for(lambda: live.server.step() or call.done())
        assert len(call.result(timeout=0).slots) == 10


def test_bytes_that_are_no_request_are_an_invalid_argument(live: Live) -> None:
    call = live.channel.unary_unary(f"/{SERVICE}/Recommend")
    code, details = refused(lambda: call(b"\xff\xff\xff", timeout=20))
    assert (code, details.startswith("the request is not a message")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert refused(lambda: call(b"", timeout=20)) == (grpc.StatusCode.INVALID_ARGUMENT, "user_id is empty")


@pytest.mark.parametrize("name", BEGUN)
def test_the_others_are_answered_while_slow_clients_keep_it_waiting(name: str, tmp_path: Path) -> None:
    with serving(tmp_path, max_workers=12, grace_s=0.1) as live, slow_clients(live, BEGUN[name], 8):
        assert [len(live.ask(f"user{number}").slots) for number in range(20)] == [10] * 20
        closed = threading.Thread(target=live.server.close)
        closed.start()
        closed.join(timeout=20)
        assert not closed.is_alive()
        assert len(live.parts.decisions()) == 20
