"""Adds CORS headers (Fetch standard), so that web pages of the origins in the setting `cors_origins` may call the API.

Responses never contain the header Access-Control-Allow-Credentials, so a page cannot read the response to a request
with cookies. The API uses no cookies: a page sends its access token in the header Authorization. So even with the
origin `*`, a page can only do what its token allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway_http.problem import HttpError
from gateway_http.request import Response

ANY_ORIGIN = "*"
# Request headers that a page may send, in addition to those that the Fetch standard always allows.
_ALLOWED = (
    b"authorization, connect-protocol-version, connect-timeout-ms, content-type, idempotency-key, if-none-match, "
    b"traceparent, x-request-id"
)
# Response headers that a page may read, in addition to those that the Fetch standard always exposes.
_EXPOSED = (
    b"deprecation, etag, ratelimit, ratelimit-policy, retry-after, traceparent, x-rate-limit-limit, x-rate-limit-remaining, "
    b"x-rate-limit-reset, x-request-id"
)
# Seconds for which a browser may cache the response to a preflight: two hours, the longest time that any browser
# accepts.
_MAX_AGE_S = b"7200"

_VARY = (b"vary", b"origin")
_EXPOSE = (b"access-control-expose-headers", _EXPOSED)


class Cors:
    """Allows `origins`, each as a browser sends it (`https://example.org`), or every origin if they contain `*`."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = ANY_ORIGIN in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, origin: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
        """Returns the CORS headers, which every response has. `origin` is the value of the request's header Origin, or
        None."""
        if self._any:
            return ((b"access-control-allow-origin", b"*"), _EXPOSE)
        if origin is None or origin not in self._origins:
            # A shared cache must not serve this response to a page of an allowed origin.
            return (_VARY,)
        return ((b"access-control-allow-origin", origin), _EXPOSE, _VARY)

    @staticmethod
    def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
        """Returns whether the request is a preflight: OPTIONS with Origin and Access-Control-Request-Method."""
        return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers

    def preflight(self, origin: bytes, methods: bytes) -> Response:
        """Returns the response to a preflight. `methods` are the HTTP methods of the requested path, comma-separated.

        Raises HttpError with status 403 if the origin is not allowed.
        """
        if not self._any and origin not in self._origins:
            raise HttpError(
                403,
                "origin_not_allowed",
                "web pages of this origin may not call this API: its operator must add it to cors_origins",
            )
        headers = (
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", _MAX_AGE_S),
        )
        return Response(204, headers, b"")
