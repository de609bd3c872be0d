"""Renders the state of a rate limit as HTTP headers. `services.platform.rpc.rate_limits` counts the requests."""

from __future__ import annotations

import math

from gateway_http.problem import Headers
from services.platform.rpc.token_buckets import Verdict


def headers(verdict: Verdict, unix_now: float) -> Headers:
    """Returns the headers `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers) and
    `X-Rate-Limit-*` (as in the API of X).

    `verdict` is the result of counting the request. `unix_now` is in Unix seconds. The header `Retry-After` is not
    returned: `problem.error_headers` adds it to the response if the request is rejected.
    """
    limit = verdict.limit
    reset = math.ceil(verdict.reset_s)
    return [
        (b"ratelimit", f'"{limit.name}";r={verdict.remaining};t={reset}'.encode()),
        (b"ratelimit-policy", f'"{limit.name}";q={limit.calls};w={math.ceil(limit.window_s)}'.encode()),
        (b"x-rate-limit-limit", str(limit.calls).encode()),
        (b"x-rate-limit-remaining", str(verdict.remaining).encode()),
        (b"x-rate-limit-reset", str(int(unix_now) + reset).encode()),
    ]
