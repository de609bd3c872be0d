"""Access tokens as all but their issuer see them: verified once, remembered until they expire, refused once revoked.

They are JSON Web Tokens signed with Ed25519. The algorithm is pinned here and never taken from a token's header.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from joserfc import jws
from joserfc.errors import UnsupportedAlgorithmError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry
from roost.event.v1 import event_pb2
from roost.identity.v1 import auth_service_pb2

from services.platform.events.log import ConsumedEvent
from services.platform.rpc import errors
from services.platform.rpc.context import Actor
from services.platform.rpc.reasons import Reason

ISSUER = AUDIENCE = "roost"
TOKEN_TYPE = "at+jwt"  # noqa: S105 (RFC 9068's name of an access token, not one)
ALGORITHM = "EdDSA"

# Ours have about 350 bytes; what is longer is not worth a look.
MAX_TOKEN_BYTES = 4_096
# The longest MintTokens makes; a session's own tokens live for minutes.
MAX_TOKEN_TTL_S = 86_400
# About 1 kB each.
MAX_VERIFIED = 50_000
# More log-outs than this within a token's life are an attack on the memory.
MAX_REVOKED = 200_000
# A token may name a key that does not exist: that must not become a call to identity each time.
REFETCH_AFTER_S = 1.0
# Clocks of two machines may differ by so much: a token is not refused for being issued that far ahead.
CLOCK_SKEW_S = 60.0
# A key that was withdrawn is believed no longer than this.
KEYS_TTL_S = 300.0

TOPICS = ("session.revoked", "user.suspended", "user.deleted")

Keys = Callable[[], Awaitable[auth_service_pb2.GetSigningKeysResponse]]

_log = structlog.get_logger(__name__)


class PinnedRegistry(JWSRegistry):
    """Knows one algorithm. The library would warn that RFC 9864 renames it; clients know the old name."""

    def get_alg(self, name: str) -> Any:
        """EdDSA, or UnsupportedAlgorithmError."""
        if name != ALGORITHM:
            raise UnsupportedAlgorithmError
        return self.algorithms[ALGORITHM]


REGISTRY = PinnedRegistry()


class Revocations:
    """Sessions and users whose tokens are refused before they expire; beyond `max_entries` of a kind the oldest go.

    A session's entry lives `session_ttl_s`, the life of its access tokens; a user's covers minted tokens too.
    """

    def __init__(self, clock: Callable[[], float], session_ttl_s: float, max_entries: int = MAX_REVOKED) -> None:
        self._clock = clock
        self._session_ttl_s = session_ttl_s
        self._max_entries = max_entries
        # Id → (tokens issued up to then are refused, of use until), oldest first.
        self._sessions: dict[int, tuple[float, float]] = {}
        self._users: dict[int, tuple[float, float]] = {}

    def revoke_session(self, session_id: int) -> None:
        """Refuses the session's tokens from now on."""
        self._add(self._sessions, session_id, math.inf, self._session_ttl_s)

    def revoke_user(self, user_id: int, before: float) -> None:
        """Refuses the user's tokens issued up to `before` (unix seconds); an earlier bound never replaces a later
        one.
        """
        self._add(self._users, user_id, before, MAX_TOKEN_TTL_S)

    def refuse(self, actor: Actor, issued_at: float) -> bool:
        """Whether a token of this actor, issued then (unix seconds), is revoked."""
        if actor.session_id in self._sessions:
            return True
        entry = self._users.get(actor.user_id)
        return entry is not None and issued_at <= entry[0]

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Takes events of TOPICS, in any order and any number of times; others are passed over."""
        for delivered in events:
            event = event_pb2.Event.FromString(delivered.payload)
            before = event.occurred_at.ToNanoseconds() / 1e9
            body = event.WhichOneof("body")
            if body == "session_revoked" and event.session_revoked.session_id:
                if self._clock() - before < self._session_ttl_s:
                    self.revoke_session(event.session_revoked.session_id)
            elif self._clock() - before < MAX_TOKEN_TTL_S:
                if body == "session_revoked":
                    self.revoke_user(event.session_revoked.user_id, before)
                elif body in ("user_suspended", "user_deleted"):
                    # It was appended after its commit: no log-in that the commit did not see got a token later than
                    # that.
                    self.revoke_user(getattr(event, body).user_id, max(before, delivered.appended_ms / 1000))

    def _add(self, entries: dict[int, tuple[float, float]], key: int, before: float, ttl_s: float) -> None:
        known, _ = entries.pop(key, (before, 0.0))
        now = self._clock()
        entries[key] = (max(before, known), now + ttl_s)
        while len(entries) > self._max_entries or entries[next(iter(entries))][1] <= now:
            del entries[next(iter(entries))]


class Verifier:
    """Tells who a token speaks for.

    `keys` asks identity for its public keys, and runs in an empty context, without anybody's token; `clock` is in unix
    seconds.
    """

    def __init__(
        self,
        keys: Keys,
        clock: Callable[[], float],
        revocations: Revocations | None = None,
        max_verified: int = MAX_VERIFIED,
    ) -> None:
        self._fetch_keys = keys
        self._clock = clock
        self._revocations = revocations
        self._max_verified = max_verified
        # Token → (actor, issued at, expires at), oldest first.
        self._verified: dict[str, tuple[Actor, float, float]] = {}
        self._keys: dict[str, OKPKey] = {}
        self._asked_at = self._fetched_at = -math.inf
        self._failing = True
        self._refetching: asyncio.Task[None] | None = None

    def cached(self, token: str) -> Actor | None:
        """The actor of a token verified before, if it is neither expired nor revoked; None says: ask `verify`."""
        entry = self._verified.get(token)
        if entry is None:
            return None
        actor, issued_at, expires_at = entry
        if expires_at <= self._clock() or (self._revocations and self._revocations.refuse(actor, issued_at)):
            del self._verified[token]
            return None
        return actor

    async def verify(self, token: str) -> Actor:
        """The actor. UNAUTHENTICATED whatever is wrong with the token; UNAVAILABLE where the keys to tell cannot be
        had.
        """
        if (actor := self.cached(token)) is not None:
            return actor
        signed, kid = _parse(token)
        actor, issued_at, expires_at = _read(signed, await self._key(kid), token, self._clock())
        if expires_at <= self._clock():
            raise errors.unauthenticated("the access token has expired", reason=Reason.TOKEN_EXPIRED)
        if self._revocations and self._revocations.refuse(actor, issued_at):
            raise errors.unauthenticated("the session has ended", reason=Reason.TOKEN_REVOKED)
        while len(self._verified) >= self._max_verified:
            del self._verified[next(iter(self._verified))]
        self._verified[token] = (actor, issued_at, expires_at)
        return actor

    async def _key(self, kid: str) -> OKPKey:
        now = self._clock()
        wanted = kid not in self._keys or now - self._fetched_at > KEYS_TTL_S
        # A clock that was set back must not stop the asking.
        asked_lately = 0 <= now - self._asked_at < REFETCH_AFTER_S
        if wanted and self._refetching is None and not asked_lately:
            # In a context of its own: whoever comes first must not lend the others a deadline or an identity.
            self._refetching = asyncio.create_task(self._refetch(), context=contextvars.Context())
        if wanted and self._refetching is not None:
            await asyncio.shield(self._refetching)
        if (key := self._keys.get(kid)) is not None:
            return key
        if self._failing:
            raise errors.unavailable("access tokens cannot be verified now", reason=Reason.NO_SIGNING_KEYS)
        raise _refusal()

    async def _refetch(self) -> None:
        self._asked_at = self._clock()
        try:
            answer = await self._fetch_keys()
            keys = {
                k.kid: OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": k.x, "kid": k.kid})
                for k in answer.keys
                if k.crv == "Ed25519"
            }
        except Exception as error:
            # Whatever it was, the keys at hand are still the best there is.
            _log.warning("signing keys not fetched", error=repr(error))
            self._failing = True
        else:
            self._keys, self._fetched_at, self._failing = keys, self._asked_at, False
        finally:
            self._refetching = None


def _parse(token: str) -> tuple[jws.CompactSignature, str]:
    """The token taken apart, and the key id it names: nothing of it is to be believed yet."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _refusal()
    try:
        signed = jws.extract_compact(token.encode("ascii"), registry=REGISTRY)
        header = signed.headers()
    except Exception:
        # A hostile token may trip the library anywhere (base64, UTF-8, JSON, its depth): it all means the same.
        raise _refusal() from None
    kid = header.get("kid")
    if header.get("alg") != ALGORITHM or header.get("typ") != TOKEN_TYPE or not isinstance(kid, str):
        raise _refusal()
    return signed, kid


def _read(signed: jws.CompactSignature, key: OKPKey, token: str, now: float) -> tuple[Actor, float, float]:
    """Actor, issued at, expires at (unix seconds), if the signature and every claim are as identity makes them.

    A token with `nbf`, which identity does not set, is refused before that time.
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
        # As in `_parse`: a number of 400 digits, a list for a number, a depth of thousands all mean the same.
        raise _refusal() from None
    if genuine and addressed and timely and actor.user_id > 0:
        return actor, issued_at, expires_at
    raise _refusal()


def _refusal() -> errors.RoostError:
    # One answer for everything: what exactly was wrong helps only who forges.
    return errors.unauthenticated("the access token is not valid", reason=Reason.TOKEN_INVALID)
