"""Which pages of other origins may call the API from a browser (CORS, as the Fetch standard has it).

Only origins in the settings' `cors_origins` may. No answer allows credentials that a browser adds by itself, such as cookies: the API
takes none, and a page sends its token in a header of its own. So even `*` gives a page nothing but what its own token may do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway_http.problem import Refusal
from gateway_http.request import Response

ANY = "*"
# What a page may send beside the headers that need no leave.
_ALLOWED = (
    b"authorization, connect-protocol-version, connect-timeout-ms, content-type, idempotency-key, if-none-match, "
    b"traceparent, x-request-id"
)  # What a page may read beside the headers that need no leave.
_EXPOSED = (
    b"deprecation, etag, ratelimit, ratelimit-policy, retry-after, traceparent, x-rate-limit-limit, x-rate-limit-remaining, "
    b"x-rate-limit-reset, x-request-id"
)
# Seconds for which a browser asks no second time; none keeps a leave longer than two hours.
_MAX_AGE_S = b"7200"

_VARY = (b"vary", b"origin")
_EXPOSE = (b"access-control-expose-headers", _EXPOSED)


class Cors:
    """The rules for `origins`, each as a browser spells it, or only `*` for all."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, origin: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
        """Returns what every answer says to a request from `origin`, refusals too; None if the request names none."""
        if self._any:
            return ((b"access-control-allow-origin", b"*"), _EXPOSE)
        if origin is None or origin not in self._origins:
            # A cache must not give this answer to a page that may read it.
            return (_VARY,)
        return ((b"access-control-allow-origin", origin), _EXPOSE, _VARY)

    @staticmethod
    def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a browser asks what a page may do, before it does it."""
        return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers

    def preflight(self, origin: bytes, methods: bytes) -> Response:
        """Answers a preflight for a route that takes `methods`; raises 403 if pages of the origin may not call."""
        if not self._any and origin not in self._origins:
            raise Refusal(403, "origin_not_allowed", "pages of this origin may not call this API")
        headers = (
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", _MAX_AGE_S),
        )
        return Response(204, headers, b"")
