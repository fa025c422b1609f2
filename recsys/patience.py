"""Gives up on requests that do not come in whole: a call holds a thread from its headers on, and slow clients must not hold them all.

Knows nothing of what is asked, nor of who may ask.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Patience:
    """For gRPC an interceptor, the first of all. `sweep` now and then ends the calls that were waited for too long."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._since_s: dict[Any, float] = {}
        """Since when the request of a call is waited for."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Called by gRPC for every call, with its headers."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        # As a stream of one request, its bytes can be waited for here, where the call is known.
        return grpc.stream_unary_rpc_method_handler(partial(self._answer, handler), None, handler.response_serializer)

    def sweep(self) -> None:
        """Cancel every call whose request has not come within `wait_s`."""
        latest_s = time.monotonic() - self._wait_s
        for context, since_s in list(self._since_s.items()):
            if since_s < latest_s:
                context.cancel()

    def _answer(self, handler: Any, requests: Iterator[bytes], context: Any) -> Any:
        self._since_s[context] = time.monotonic()
        try:
            data = next(requests, None)
        finally:
            del self._since_s[context]
        try:
            request = handler.request_deserializer(data or b"")
        except DecodeError as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request is not a message of this method: {error}")
        return handler.unary_unary(request, context)
