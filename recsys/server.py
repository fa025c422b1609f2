"""The engine behind gRPC: batches, health, authentication, limits and drain. The one importer of grpc for servers.

Knows nothing of how a slate is generated, nor of what an event means: that is the engine's. One `step()` a second, by
whoever drives the process; calls are answered by their own threads meanwhile.
"""

import hmac
import logging
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from recsys.admission import BadRequest
from recsys.batches import Batches
from recsys.catalogue import Catalogue
from recsys.engine import Engine
from recsys.hot_swap import HotSwap, Loaded
from recsys.patience import Patience
from recsys.policy import DrawingConfig
from recsys.recommender_pb2_grpc import RecommenderServicer, add_RecommenderServicer_to_server
from recsys.spool import SpoolFull
from streaming.clock import Clock
from streaming.log import LogChanged, LogUnavailable, OffsetGone
from streaming.proto import recommender_pb2
from streaming.proto.recommender_pb2 import (
    GetStatusRequest,
    GetStatusResponse,
    RecommendRequest,
    RecommendResponse,
    RecordEventsRequest,
    RecordEventsResponse,
    UpsertItemsRequest,
    UpsertItemsResponse,
    VariantStatus,
)

SERVICE = str(recommender_pb2.DESCRIPTOR.services_by_name["Recommender"].full_name)

LOG = logging.getLogger(__name__)

LAME_DUCK_S = 0.1
"""How long calls are refused in words before the port closes: gRPC resets what comes while it does, and says CANCELLED."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How the server listens. None of it changes a slate, so none of it is hashed."""

    address: str = "127.0.0.1:0"
    """HOST:PORT; port 0 means a free one, which `start` returns."""
    max_workers: int = 32
    """Threads that answer: each call that waits holds one."""
    max_batch: int = 16
    """Slates made at once for requests that wait for each other."""
    max_concurrent: int = 64
    """Calls held at once; one more is answered RESOURCE_EXHAUSTED."""
    max_message_bytes: int = 1_000_000
    request_s: float = 10.0
    """How long a request may take from its headers to its last byte."""
    reflection: bool = False
    """Whether anybody may ask which methods there are."""
    tick_interval_ms: int = 250
    grace_s: float = 5.0
    """How long `close` lets calls in flight finish."""
    name: str = ""
    """Tells the servers of one log apart: in the ids of Decisions, and their files in a state directory."""
    log_timeout_s: float = 3.0
    """How long a call waits for the log before it counts as away."""
    spool_max_bytes: int = 256_000_000
    """Size of the file of Decisions that wait for a log that is away; past it Recommend is UNAVAILABLE."""

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"server.address is {self.address!r}; it must be HOST:PORT, the port 0..65535")
        limits: dict[str, tuple[float, float]] = {
            "max_workers": (1, 256),
            "max_batch": (1, 256),
            "max_concurrent": (1, 100_000),
            "max_message_bytes": (1_000, 64_000_000),
        }
        limits |= {
            "tick_interval_ms": (1, 60_000),
            "grace_s": (0, 600),
            "request_s": (0.01, 600),
            "log_timeout_s": (0.01, 600),
            "spool_max_bytes": (0, 10**12),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"server.{name} is {getattr(self, name)}; it must be {low}..{high}")
        if not re.fullmatch("[a-z0-9-]{0,40}", self.name):
            raise ValueError(f"server.name is {self.name!r}; it must be at most 40 of a..z, 0..9 and -")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may call: placement, read from the environment and never hashed. By default anybody, without encryption."""

    bearer_tokens: tuple[str, ...] = field(default=(), repr=False)
    """Any of them opens every method but health; two at once while they rotate."""
    tls_certificate: Path | None = None
    """PEM chain of this server."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM of the authority whose clients alone may connect (mTLS)."""

    def __post_init__(self) -> None:
        if any(len(token.encode()) < 16 for token in self.bearer_tokens):
            raise ValueError("a bearer token is too short; each must have 16 bytes or more")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca is given without tls_certificate: clients can only be known over TLS")

    def credentials(self) -> Any | None:
        """What gRPC needs for TLS, read from the files now; None without TLS. OSError for one that is not there, ValueError for one
        that holds something else: gRPC would say that it can't listen.
        """
        if self.tls_certificate is None or self.tls_key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.tls_certificate, self.tls_key, password="")  # an encrypted one is asked for on the terminal else
            if self.tls_client_ca:
                context.load_verify_locations(self.tls_client_ca)
        except ssl.SSLError as error:
            files = ", ".join(str(path) for path in (self.tls_certificate, self.tls_key, self.tls_client_ca) if path)
            raise ValueError(f"{files}: not a certificate in PEM with its key ({error.reason or error})") from None
        pair = self.tls_key.read_bytes(), self.tls_certificate.read_bytes()
        ca = self.tls_client_ca.read_bytes() if self.tls_client_ca else None
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


class Server:
    """A Component: `start` once, `step` about once a second, `close` at the end. `step` and calls may run in different threads."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        clock: Clock,
        state_dir: Path,
        variants: Sequence[str],
        drawing: DrawingConfig,
        access: Access | None = None,
    ) -> None:
        """`state_dir` holds a directory a variant, as `publisher` writes them. The logs stay their owner's to close."""
        self.config, self._engine, self._clock = config, engine, clock
        self._access = access or Access()
        self._swap = HotSwap(engine, clock, state_dir, variants, drawing)
        self._service = _Service(engine, clock, self._swap, config.max_batch)
        self._health = health.HealthServicer()
        self._patience = Patience(config.request_s)
        self._ticked_at_ms: int | None = None
        self._log_error = ""
        self._server: Any = None
        self.port = 0

    def start(self) -> int:
        """Load what is published, then listen; the port. OSError when the address is taken or a TLS file can't be read.

        Give BLAS one thread (OPENBLAS_NUM_THREADS=1, before numpy is imported): on a busy machine a slate is made in a third of the time.
        """
        self.step()
        self._server = grpc.server(
            ThreadPoolExecutor(self.config.max_workers, thread_name_prefix="recommend"),
            interceptors=[self._patience, *([_Bearer(self._access.bearer_tokens)] if self._access.bearer_tokens else [])],
            options=_options(self.config),
            maximum_concurrent_rpcs=self.config.max_concurrent,
        )
        add_RecommenderServicer_to_server(self._service, self._server)  # type: ignore[no-untyped-call]  # generated
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self.config.reflection:
            reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self.port = self._bind()
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        return self.port

    def step(self) -> None:
        """Tick the log when it is time, take in what other servers appended, follow the published versions, give up slow requests.

        With the log away everything else goes on; `stats()["log_error"]` says so until it is back, `"spooled"` how many wait for it.
        """
        now_ms = self._clock.now_ms()
        # a clock that was set back must not silence the ticks until it is where it was
        if self._ticked_at_ms is None or not 0 <= now_ms - self._ticked_at_ms < self.config.tick_interval_ms:
            try:
                # Appending to every partition also reads what others appended there before.
                self._engine.tick()
            except LogUnavailable as error:
                if not self._log_error:
                    LOG.warning("the log is away; decisions wait here until it is back: %s", error)
                self._log_error = str(error)
            else:
                if self._log_error:
                    LOG.info("the log is back and has all decisions")
                self._log_error = ""
                self._ticked_at_ms = now_ms
        self._swap.follow()
        self._patience.sweep()

    def stats(self) -> Mapping[str, Any]:
        """Calls by method and code since the start, and what each variant is served with; plain JSON values."""
        return {
            "calls": self._service.calls(),
            "log_error": self._log_error,
            "spooled": self._engine.num_spooled,
            "num_items": _num_items(self._engine.catalogue),
            "num_users": self._engine.memory.num_users,
            "variants": {variant: _version_stats(self._swap, variant) for variant in self._swap.variants},
        }

    def close(self) -> None:
        """Drain: health says NOT_SERVING, no new call is taken, those in flight get `grace_s` to finish. May be called twice."""
        self._health.enter_graceful_shutdown()
        if self._server is not None:
            self._service.refuse()
            time.sleep(LAME_DUCK_S)
            self._server.stop(self.config.grace_s).wait()

    def _bind(self) -> int:
        address, credentials = self.config.address, self._access.credentials()
        try:
            return int(self._server.add_secure_port(address, credentials) if credentials else self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}: {error}") from error


class _Gone(Exception):
    """Nobody waits for the answer any more."""


class _Leaving(Exception):
    """The server is about to stop."""


class _Service(RecommenderServicer):
    """The four methods: each one line over the engine; errors become codes."""

    def __init__(self, engine: Engine, clock: Clock, swap: HotSwap, max_batch: int) -> None:
        self._engine, self._clock, self._swap = engine, clock, swap
        self._recommends = Batches(self._recommend_all, max_batch)
        self._calls: Counter[str] = Counter()
        self._refuses = False
        self._lock = threading.Lock()

    def Recommend(self, request: RecommendRequest, context: Any) -> RecommendResponse:  # noqa: N802  the contract's name, as below
        return self._answer("Recommend", context, lambda: self._recommend(request, context))

    def RecordEvents(self, request: RecordEventsRequest, context: Any) -> RecordEventsResponse:  # noqa: N802
        return self._answer("RecordEvents", context, lambda: _outcome(RecordEventsResponse, *self._engine.record(request.events)))

    def UpsertItems(self, request: UpsertItemsRequest, context: Any) -> UpsertItemsResponse:  # noqa: N802
        return self._answer("UpsertItems", context, lambda: _outcome(UpsertItemsResponse, *self._engine.upsert(request.items)))

    def GetStatus(self, request: GetStatusRequest, context: Any) -> GetStatusResponse:  # noqa: N802
        return self._answer("GetStatus", context, self._status)

    def refuse(self) -> None:
        """Take no call that comes from now on."""
        self._refuses = True

    def calls(self) -> dict[str, int]:
        """How often each method ended with each code."""
        with self._lock:
            return dict(self._calls)

    def _answer(self, method: str, context: Any, work: Callable[[], _Answer]) -> _Answer:
        # A call whose deadline passed while it waited for a thread never comes here: gRPC drops it.
        code, details = grpc.StatusCode.OK, ""
        try:
            if self._refuses:
                raise _Leaving
            answer = work()
        except _Leaving:
            code, details = grpc.StatusCode.UNAVAILABLE, "this server is about to stop; ask another"
        except BadRequest as error:
            code, details = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except _Gone:
            code, details = grpc.StatusCode.CANCELLED, "the caller did not wait for the answer"
        except SpoolFull:
            code, details = (
                grpc.StatusCode.UNAVAILABLE,
                "the event log can't be reached and no more decisions can wait for it",
            )
        except LogUnavailable:
            code, details = grpc.StatusCode.UNAVAILABLE, "the event log can't be reached now; send it again later"
        except (LogChanged, OffsetGone):  # the next step says what it is, and stops
            code, details = grpc.StatusCode.UNAVAILABLE, "the event log is not what it was; this server is about to stop, ask another"
        with self._lock:
            self._calls[f"{method} {code.name}"] += 1
        return answer if code is grpc.StatusCode.OK else context.abort(code, details)

    def _recommend(self, request: RecommendRequest, context: Any) -> RecommendResponse:
        self._engine.check(request)  # here, so that it fails alone
        answer = self._recommends.answer((request, context))
        if answer is None:
            raise _Gone
        return answer

    def _recommend_all(self, calls: Sequence[tuple[RecommendRequest, Any]]) -> list[RecommendResponse | None]:
        """None for a call that was given up, or whose deadline passed, while it waited."""
        waits = [context.is_active() for _, context in calls]
        answers = iter(self._engine.recommend_many([request for (request, _), is_there in zip(calls, waits, strict=True) if is_there]))
        return [next(answers) if is_there else None for is_there in waits]

    def _status(self) -> GetStatusResponse:
        return GetStatusResponse(
            variants=[_variant_status(variant, self._swap.loaded.get(variant)) for variant in self._swap.variants],
            num_items=_num_items(self._engine.catalogue),
            num_users=self._engine.memory.num_users,
            now_ms=self._clock.now_ms(),
        )


class _Bearer:
    """Lets a call through that carries one of the tokens. Health is open: who balances load has no token."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._refusal = grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: Bearer <token> is missing or wrong"),
            request_deserializer=bytes,  # whatever it says
        )

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Called by gRPC for every call, with its headers."""
        if details.method.startswith(f"/{health.SERVICE_NAME}/") or self._is_known(
            dict(details.invocation_metadata).get("authorization", "")
        ):
            return continuation(details)
        return self._refusal

    def _is_known(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and any(hmac.compare_digest(token.encode(), known) for known in self._tokens)


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # two servers on one port would share its calls without a word
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _outcome(message: Callable[..., _Answer], accepted: int, rejected: Sequence[recommender_pb2.Rejection]) -> _Answer:
    return message(accepted=accepted, rejected=rejected)


def _num_items(catalogue: Catalogue) -> int:
    """Items that are not retired."""
    offset = catalogue.next_offset
    return catalogue.num_rows(offset) - 1 - len(catalogue.retired_rows(offset))


def _variant_status(variant: str, loaded: Loaded | None) -> VariantStatus:
    if loaded is None:
        return VariantStatus(variant=variant)
    return VariantStatus(
        variant=variant,
        policy_version=loaded.policy.policy_version,
        trained_through_ms=loaded.policy.trained_through_ms,
        published_at_ms=loaded.published.published_at_ms,
        loaded_at_ms=loaded.loaded_at_ms,
    )


def _version_stats(swap: HotSwap, variant: str) -> dict[str, Any]:
    loaded, refused = swap.loaded.get(variant), swap.refused.get(variant)
    status = _variant_status(variant, loaded)
    facts = {field.name: getattr(status, field.name) for field in status.DESCRIPTOR.fields if field.name != "variant"}
    kept_share = loaded.policy.kept_share if loaded else None
    return facts | {"load_s": loaded.load_s if loaded else 0.0, "refused": refused.reason if refused else "", "kept_share": kept_share}
