"""Renders the state of a rate limit as HTTP headers; `services.platform.rpc.rate_limits` counts the requests."""

from __future__ import annotations

import math

from gateway_http.problem import Headers
from services.platform.rpc.rate_limits import Verdict


def headers(verdict: Verdict, unix_now: float) -> Headers:
    """Returns `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers) and the `X-Rate-Limit-*` headers of X.

    `unix_now` is in seconds. `Retry-After` is not among them: `problem` adds it to the response of a rejected request.
    """
    bucket = verdict.bucket
    reset = math.ceil(verdict.reset_s)
    return [
        (b"ratelimit", f'"{bucket.name}";r={verdict.remaining};t={reset}'.encode()),
        (b"ratelimit-policy", f'"{bucket.name}";q={bucket.limit};w={math.ceil(bucket.window_s)}'.encode()),
        (b"x-rate-limit-limit", str(bucket.limit).encode()),
        (b"x-rate-limit-remaining", str(verdict.remaining).encode()),
        (b"x-rate-limit-reset", str(int(unix_now) + reset).encode()),
    ]
