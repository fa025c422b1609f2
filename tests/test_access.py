"""Who may call the server: bearer tokens and mutual TLS, over a real port."""

import subprocess
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from recsys.recommender_pb2_grpc import RecommenderStub
from recsys.server import Access
from streaming.proto.recommender_pb2 import GetStatusRequest, RecommendRequest
from tests.serving import refused, serving

TOKEN = "a-token-of-some-length"
UNKNOWN_CALLER, AWAY = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("header", "is_known"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        ("Bearer another-of-16-bytes", True),
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Bearer ", False),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Bearer  {TOKEN}", False),
    ],
)
def test_only_a_known_token_opens_the_methods(header: str | None, is_known: bool, tmp_path: Path) -> None:
    access = Access(bearer_tokens=(TOKEN, "another-of-16-bytes"))
    assert TOKEN not in repr(access)
    with serving(tmp_path, access=access) as live:
        metadata = [] if header is None else [("authorization", header)]
        call = partial(live.stub.Recommend, RecommendRequest(user_id="ann"), metadata=metadata)
        if is_known:
            assert call().slots
        else:
            assert refused(call) == (UNKNOWN_CALLER, "authorization: Bearer <token> is missing or wrong")
            assert live.parts.records() == []
        assert live.health() == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with a server and a client, and a stranger who signed itself, made by openssl."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    try:
        openssl("version")
    except FileNotFoundError:
        pytest.skip("no openssl program to make certificates with")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl(*sign, "-out", f"{name}.pem", "-days", "2")
    return directory


@pytest.mark.parametrize(
    ("client", "ca", "is_known"), [(None, "ca", False), ("stranger", "ca", False), ("client", "ca", True), ("client", "stranger", False)]
)
def test_mutual_tls(client: str | None, ca: str, is_known: bool, certificates: Path, tmp_path: Path) -> None:
    access = Access(tls_certificate=certificates / "server.pem", tls_key=certificates / "server.key", tls_client_ca=certificates / "ca.pem")
    with serving(tmp_path, access=access) as live:
        pair = ((certificates / f"{client}.key").read_bytes(), (certificates / f"{client}.pem").read_bytes()) if client else (None, None)
        credentials = grpc.ssl_channel_credentials((certificates / f"{ca}.pem").read_bytes(), *pair)
        with grpc.secure_channel(f"127.0.0.1:{live.server.port}", credentials) as channel:
            call = partial(RecommenderStub(channel).Recommend, RecommendRequest(user_id="ann"), timeout=10)
            if is_known:
                assert call().slots
            else:
                assert refused(call)[0] == AWAY
        assert refused(lambda: live.stub.GetStatus(GetStatusRequest(), timeout=10))[0] == AWAY  # without TLS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bearer_tokens": ("",)}, "each must have 16 bytes or more"),
        ({"bearer_tokens": ("short",)}, "each must have 16 bytes or more"),
        ({"tls_certificate": Path("c")}, "must be given together"),
        ({"tls_key": Path("k")}, "must be given together"),
        ({"tls_client_ca": Path("ca")}, "clients can only be known over TLS"),
    ],
)
def test_access_that_would_be_open_by_mistake_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Access(**fields)


@pytest.mark.parametrize(("certificate", "key"), [("names", "server.key"), ("server.pem", "names"), ("server.pem", "client.key")])
def test_files_that_hold_no_certificate_with_its_key_are_named(certificates: Path, certificate: str, key: str) -> None:
    access = Access(tls_certificate=certificates / certificate, tls_key=certificates / key)
    with pytest.raises(ValueError, match=f"{certificate}, .*{key}: not a certificate in PEM with its key"):
        access.credentials()
