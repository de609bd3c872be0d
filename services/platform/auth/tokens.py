"""Verifies access tokens: caches verified tokens until they expire, and rejects tokens that were revoked.

Access tokens are JSON Web Tokens signed with Ed25519. The algorithm is fixed here; a token's header cannot choose it.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grpc.aio
import structlog
from joserfc import jws
from joserfc.errors import UnsupportedAlgorithmError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry
from roost.event.v1 import event_pb2

from services.platform.events.log import ConsumedEvent
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.context import Actor
from services.platform.rpc.reasons import Reason

ISSUER = AUDIENCE = "roost"
TOKEN_TYPE = "at+jwt"  # noqa: S105 (RFC 9068's name of an access token, not one)
ALGORITHM = "EdDSA"

# Maximum length of an access token in bytes. A longer token is rejected with UNAUTHENTICATED before it is parsed;
# Roost's own have about 350 bytes.
MAX_TOKEN_BYTES = 4_096
# Longest lifetime of an access token in seconds: 24 h, the maximum that MintTokens accepts. The tokens of a session
# expire after minutes.
MAX_TOKEN_TTL_S = 86_400
# Maximum number of verified tokens in the cache, about 1 kB each: 50 MB. Beyond it the oldest is evicted.
MAX_VERIFIED = 50_000
# Maximum number of revoked sessions in memory, and the same number of revoked users. Each set takes about 20 MB when
# full. Beyond it the oldest are dropped.
MAX_REVOKED = 200_000
# Minimum number of seconds between two fetches of the keys. A client can send any number of tokens with unknown key
# ids; without this interval each of them would cause a fetch.
REFETCH_AFTER_S = 1.0
# Maximum number of seconds by which `nbf` of a token may be in the future, because the clocks of two machines differ. A
# token with a later `nbf` is rejected.
CLOCK_SKEW_S = 60.0
# Number of seconds after which the keys are fetched again. From then on tokens signed with a withdrawn key are
# rejected, except tokens in the cache of verified tokens, which are accepted until they expire.
KEYS_TTL_S = 300.0

TOPICS = ("session.revoked", "user.suspended", "user.deleted")

log = structlog.get_logger(__name__)


class VerificationKey(NamedTuple):
    """An Ed25519 public key: `key_id` is the `kid` in the headers of its tokens, `x` the key in base64url (RFC
    8037)."""

    key_id: str
    x: str


class KeySource(Protocol):
    """The service that issues access tokens. The code that starts the process passes it, because the platform knows no
    service by name."""

    @property
    def service(self) -> str:
        """The name of the service that `fetch` calls, such as "identity"."""

    async def fetch(self, channel: grpc.aio.Channel) -> Sequence[VerificationKey]:
        """Returns the public keys of all tokens that may be valid now. Raises AioRpcError if the service does not
        answer."""


FetchKeys = Callable[[], Awaitable[Sequence[VerificationKey]]]


class PinnedRegistry(JWSRegistry):
    """A registry with one algorithm, EdDSA, without the library's warning that RFC 9864 renames it: clients use the old
    name."""

    def get_alg(self, name: str) -> Any:
        """Returns the algorithm EdDSA. Raises UnsupportedAlgorithmError for any other name."""
        if name != ALGORITHM:
            raise UnsupportedAlgorithmError
        return self.algorithms[ALGORITHM]


REGISTRY = PinnedRegistry()


class Revocations:
    """Stores the sessions and users whose tokens are rejected before they expire: at most `max_entries` of each, beyond
    which the oldest are evicted.

    A revoked session is stored for `session_ttl_s` seconds, the lifetime of its access tokens. A revoked user is stored
    for MAX_TOKEN_TTL_S seconds, so that tokens from MintTokens are rejected too. `clock` returns Unix seconds.
    """

    def __init__(self, clock: Callable[[], float], session_ttl_s: float, max_entries: int = MAX_REVOKED) -> None:
        self._clock = clock
        self._session_ttl_s = session_ttl_s
        self._max_entries = max_entries
        # By id: (time up to which issued tokens are rejected, time at which the entry expires), in Unix seconds; oldest
        # first.
        self._sessions: dict[int, tuple[float, float]] = {}
        self._users: dict[int, tuple[float, float]] = {}

    def revoke_session(self, session_id: int) -> None:
        """Rejects all tokens of the session from now on."""
        self._add(self._sessions, session_id, math.inf, self._session_ttl_s)

    def revoke_user(self, user_id: int, before: float) -> None:
        """Rejects the user's tokens issued up to `before` (Unix seconds). If called several times, the latest `before`
        applies."""
        self._add(self._users, user_id, before, MAX_TOKEN_TTL_S)

    def is_revoked(self, actor: Actor, issued_at: float) -> bool:
        """Returns True if a token of this actor that was issued at `issued_at` (Unix seconds) is revoked."""
        if actor.session_id in self._sessions:
            return True
        entry = self._users.get(actor.user_id)
        return entry is not None and issued_at <= entry[0]

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Applies events of TOPICS, in any order and any number of times; ignores events of other topics."""
        for consumed in events:
            event = event_pb2.Event.FromString(consumed.payload)
            before = event.occurred_at.ToNanoseconds() / 1e9
            body = event.WhichOneof("body")
            if body == "session_revoked" and event.session_revoked.session_id:
                if self._clock() - before < self._session_ttl_s:
                    self.revoke_session(event.session_revoked.session_id)
            elif self._clock() - before < MAX_TOKEN_TTL_S:
                if body == "session_revoked":
                    self.revoke_user(event.session_revoked.user_id, before)
                elif body in ("user_suspended", "user_deleted"):
                    # The event was appended after the suspension was committed, and after the commit every log-in is
                    # rejected. So every token that a concurrent log-in may have got was issued before the append.
                    self.revoke_user(getattr(event, body).user_id, max(before, consumed.appended_ms / 1000))

    def _add(self, entries: dict[int, tuple[float, float]], key: int, before: float, ttl_s: float) -> None:
        known, _ = entries.pop(key, (before, 0.0))
        now = self._clock()
        entries[key] = (max(before, known), now + ttl_s)
        while len(entries) > self._max_entries or entries[next(iter(entries))][1] <= now:
            del entries[next(iter(entries))]


class Verifier:
    """Verifies the signature, claims, expiry and revocation of access tokens and returns their actors.

    `fetch_keys` returns the issuer's current public keys. It runs in an empty context, without a user's token or
    deadline. `clock` returns Unix seconds. At most `max_verified` verified tokens are cached.
    """

    def __init__(
        self,
        fetch_keys: FetchKeys,
        clock: Callable[[], float],
        revocations: Revocations | None = None,
        max_verified: int = MAX_VERIFIED,
    ) -> None:
        self._fetch_keys = fetch_keys
        self._clock = clock
        self._revocations = revocations
        self._max_verified = max_verified
        # Token → (actor, issued at, expires at), oldest first, in Unix seconds.
        self._verified: dict[str, tuple[Actor, float, float]] = {}
        self._keys: dict[str, OKPKey] = {}
        self._tried_at = self._fetched_at = -math.inf
        self._failing = True
        self._refetching: asyncio.Task[None] | None = None

    def cached(self, token: str) -> Actor | None:
        """Returns the actor if the token is cached and neither expired nor revoked, else None. Verifies no signature
        and makes no call."""
        entry = self._verified.get(token)
        if entry is None:
            return None
        actor, issued_at, expires_at = entry
        if expires_at <= self._clock() or (self._revocations and self._revocations.is_revoked(actor, issued_at)):
            del self._verified[token]
            return None
        return actor

    async def verify(self, token: str) -> Actor:
        """Returns the token's actor.

        Raises UNAUTHENTICATED if the token is malformed, forged, expired or revoked. Raises UNAVAILABLE if the signing
        keys cannot be fetched and no cached key has the token's key id.
        """
        if (actor := self.cached(token)) is not None:
            return actor
        signed, kid = _parse(token)
        actor, issued_at, expires_at = _read(signed, await self._key(kid), token, self._clock())
        if expires_at <= self._clock():
            raise errors.unauthenticated(
                "the access token has expired: refresh it or sign in again", reason=Reason.TOKEN_EXPIRED
            )
        if self._revocations and self._revocations.is_revoked(actor, issued_at):
            raise errors.unauthenticated("the session has ended: sign in again", reason=Reason.TOKEN_REVOKED)
        while len(self._verified) >= self._max_verified:
            del self._verified[next(iter(self._verified))]
        self._verified[token] = (actor, issued_at, expires_at)
        return actor

    async def _key(self, kid: str) -> OKPKey:
        now = self._clock()
        wanted = kid not in self._keys or now - self._fetched_at > KEYS_TTL_S
        # `0 <=`: if the clock was set back, keys must be fetched at once, not only when the clock has reached the
        # earlier time again.
        fetched_lately = 0 <= now - self._tried_at < REFETCH_AFTER_S
        if wanted and self._refetching is None and not fetched_lately:
            # Several calls wait for this task, so it must not inherit the deadline or the actor of the first call.
            self._refetching = asyncio.create_task(self._refetch(), context=contextvars.Context())
        if wanted and self._refetching is not None:
            await asyncio.shield(self._refetching)
        if (key := self._keys.get(kid)) is not None:
            return key
        if self._failing:
            raise errors.unavailable(
                "access tokens cannot be verified, because the signing keys are unavailable: retry later",
                reason=Reason.NO_SIGNING_KEYS,
            )
        raise _invalid_token()

    async def _refetch(self) -> None:
        self._tried_at = self._clock()
        try:
            keys = {
                key_id: OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": key_id})
                for key_id, x in await self._fetch_keys()
            }
        except Exception as error:
            # The cached keys stay in use: tokens of known keys are still verified during an outage of the issuer.
            log.warning(LogEvent.SIGNING_KEYS_FETCH_FAILED, error=repr(error))
            self._failing = True
        else:
            self._keys, self._fetched_at, self._failing = keys, self._tried_at, False
        finally:
            self._refetching = None


def _parse(token: str) -> tuple[jws.CompactSignature, str]:
    """Returns the token's parts and its key id, both unverified. Raises UNAUTHENTICATED if the token does not have the
    form of Roost's tokens."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _invalid_token()
    try:
        signed = jws.extract_compact(token.encode("ascii"), registry=REGISTRY)
        header = signed.headers()
    except Exception:
        # For a malformed token the library raises exceptions of many types (of base64, UTF-8, JSON, recursion): each
        # means that the token is invalid.
        raise _invalid_token() from None
    kid = header.get("kid")
    if header.get("alg") != ALGORITHM or header.get("typ") != TOKEN_TYPE or not isinstance(kid, str):
        raise _invalid_token()
    return signed, kid


def _read(signed: jws.CompactSignature, key: OKPKey, token: str, now: float) -> tuple[Actor, float, float]:
    """Returns (actor, issued at, expires at), the times in Unix seconds, of a token, after it has verified the
    signature and the claims.

    Raises UNAUTHENTICATED if the signature is wrong, if a claim is missing or has the wrong type, if the issuer or the
    audience is not Roost, or if `nbf` is more than CLOCK_SKEW_S seconds in the future. Does not check the expiry.
    """
    try:
        genuine = jws.validate_compact(signed, key, registry=REGISTRY)
        claims = json.loads(signed.payload or b"")
        actor = Actor(int(claims["sub"]), int(claims["sid"]), frozenset(map(str, claims["roles"])), token)
        issued_at, expires_at = float(claims["iat"]), float(claims["exp"])
        begins_at = float(claims.get("nbf", 0))
        addressed = claims["iss"] == ISSUER and claims["aud"] == AUDIENCE
        timely = begins_at <= now + CLOCK_SKEW_S and math.isfinite(expires_at) and math.isfinite(issued_at)
    except Exception:
        # Claims can hold any value (a number of 400 digits, a list in place of a number, thousands of nested lists),
        # and each exception means that the token is invalid.
        raise _invalid_token() from None
    if genuine and addressed and timely and actor.user_id > 0:
        return actor, issued_at, expires_at
    raise _invalid_token()


def _invalid_token() -> errors.RoostError:
    # Every defect of a token gives the same error, because details would help only someone who forges tokens.
    return errors.unauthenticated("the access token is not valid: sign in again", reason=Reason.TOKEN_INVALID)
