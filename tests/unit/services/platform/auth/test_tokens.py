"""Tests access tokens: which are accepted, which are refused, and how often keys are fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey
from roost.event.v1 import event_pb2
from roost.identity.v1 import auth_service_pb2

from services.identity.signing import Signer, new_key
from services.platform.auth import tokens
from services.platform.auth.tokens import Revocations, VerificationKey, Verifier
from services.platform.events.log import ConsumedEvent
from services.platform.rpc import context, errors
from services.shared.signing_keys import verification_keys

NOW = 1_800_000_000.0
TTL_S = 300


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Identity:
    """A token issuer: returns the keys of `signers`, records each fetch, and raises UNAVAILABLE while `down`."""

    def __init__(self, *signers: Signer) -> None:
        self.signers = list(signers)
        self.asked = 0
        self.down = False
        self.asked_as: list[context.Call] = []

    async def keys(self) -> Sequence[VerificationKey]:
        self.asked += 1
        self.asked_as.append(context.current())
        if self.down:
            raise errors.unavailable("down")
        response = auth_service_pb2.GetSigningKeysResponse()
        for signer in self.signers:
            response.MergeFrom(signer.public_keys())
        return verification_keys(response)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jwk() -> bytes:
    return new_key()


@pytest.fixture
def signer(jwk: bytes, clock: Clock) -> Signer:
    return Signer(jwk, clock)


@pytest.fixture
def identity(signer: Signer) -> Identity:
    return Identity(signer)


@pytest.fixture
def revocations(clock: Clock) -> Revocations:
    return Revocations(clock, TTL_S)


@pytest.fixture
def verifier(identity: Identity, clock: Clock, revocations: Revocations) -> Verifier:
    return Verifier(identity.keys, clock, revocations)


async def refused(verifier: Verifier, token: str) -> errors.RoostError:
    with pytest.raises(errors.RoostError) as caught:
        await verifier.verify(token)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert verifier.cached(token) is None
    return caught.value


async def test_verify_valid_token_returns_actor(verifier: Verifier, signer: Signer) -> None:
    token = signer.sign(42, 7, {"moderator"}, TTL_S)
    actor = await verifier.verify(token)
    assert (actor.user_id, actor.session_id, actor.roles) == (42, 7, frozenset({"moderator"}))
    assert actor.token == token
    assert verifier.cached(token) == actor


async def test_verify_expired_token_is_refused_despite_cache(verifier: Verifier, signer: Signer, clock: Clock) -> None:
    token = signer.sign(42, 7, (), TTL_S)
    await verifier.verify(token)
    clock.now += TTL_S - 1
    assert verifier.cached(token) is not None
    clock.now += 1
    assert verifier.cached(token) is None
    assert (await refused(verifier, token)).reason == "TOKEN_EXPIRED"


def forged(jwk: bytes, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token signed with the real key, with other headers or claims; None leaves a claim out."""
    fields = json.loads(jwk)
    sound = {"iss": "roost", "aud": "roost", "sub": "42", "sid": "7", "roles": [], "iat": NOW, "exp": NOW + TTL_S}
    body = {name: value for name, value in (sound | claims).items() if value is not None}
    key = OKPKey.import_key({**fields, "alg": "EdDSA"})
    heads = {"alg": "EdDSA", "typ": "at+jwt", "kid": fields["kid"]} | (header or {})
    return jwt.encode(heads, body, key, registry=tokens.REGISTRY, default_type=None)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(jwk: bytes) -> str:
    _, claims, _ = forged(jwk).split(".")
    return f"{part({'alg': 'none', 'typ': 'at+jwt', 'kid': json.loads(jwk)['kid']})}.{claims}."


def signed_with_the_public_key(jwk: bytes) -> str:
    fields = json.loads(jwk)
    secret = OctKey.import_key(base64.urlsafe_b64decode(fields["x"] + "="))
    claims = json.loads(base64.urlsafe_b64decode(forged(jwk).split(".")[1] + "=="))
    header = {"alg": "HS256", "typ": "at+jwt", "kid": fields["kid"]}
    return jwt.encode(header, claims, secret, algorithms=["HS256"], default_type=None)


def with_a_changed_claim(jwk: bytes) -> str:
    header, claims, signature = forged(jwk).split(".")
    fields = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{header}.{part(fields | {'sub': '1', 'roles': ['admin']})}.{signature}"


def signed_by_another_key_of_the_same_name(jwk: bytes) -> str:
    return forged(json.dumps(json.loads(new_key()) | {"kid": json.loads(jwk)["kid"]}).encode())


ATTACKS: dict[str, Callable[[bytes], str]] = {
    "empty": lambda _: "",
    "garbage": lambda _: "garbage",
    "dots": lambda _: "..",
    "five parts": lambda _: "a.b.c.d.e",
    "not ASCII": lambda _: "é.é.é",
    "not base64": lambda _: "%%.%%.%%",
    "not JSON": lambda _: "YQ.YQ.YQ",
    "a header that is a list": lambda _: f"{part([])}.{part({})}.AA",
    "a header nested without end": lambda _: (
        base64.urlsafe_b64encode(b"[" * 300).decode().rstrip("=") + f".{part({})}.AA"
    ),
    "claims nested without end": lambda jwk: f"{forged(jwk).split('.')[0]}.{'W1tb' * 900}.AA",
    "huge": lambda jwk: forged(jwk, padding="x" * 5_000),
    "alg none": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "no alg": lambda jwk: f"{part({'typ': 'at+jwt', 'kid': json.loads(jwk)['kid']})}.{part({})}.AA",
    "a changed claim": with_a_changed_claim,
    "another key under the same id": signed_by_another_key_of_the_same_name,
    "an unknown key": lambda _: forged(new_key()),
    "a key id that is a path": lambda jwk: forged(jwk, {"kid": "../../etc/passwd"}),
    "no key id": lambda jwk: f"{part({'alg': 'EdDSA', 'typ': 'at+jwt'})}.{'.'.join(forged(jwk).split('.')[1:])}",
    "another type": lambda jwk: forged(jwk, {"typ": "JWT"}),
    "a key it brings along": lambda jwk: forged(jwk, {"kid": "own", "jwk": json.loads(jwk)}),
    "a critical extension": lambda jwk: (
        f"{part({'alg': 'EdDSA', 'typ': 'at+jwt', 'crit': ['x'], 'x': 1})}.{part({})}.AA"
    ),
    "another issuer": lambda jwk: forged(jwk, iss="elsewhere"),
    "another audience": lambda jwk: forged(jwk, aud="elsewhere"),
    "no audience": lambda jwk: forged(jwk, aud=None),
    "expired": lambda jwk: forged(jwk, exp=NOW - 1),
    "expires now": lambda jwk: forged(jwk, exp=NOW),
    "no expiry": lambda jwk: forged(jwk, exp=None),
    "expiry that is no number": lambda jwk: forged(jwk, exp="never"),
    "expiry beyond any float": lambda jwk: forged(jwk, exp=10**400),
    "expiry is a list": lambda jwk: forged(jwk, exp=[NOW + TTL_S]),
    "not yet": lambda jwk: forged(jwk, nbf=NOW + 3_600),
    "not before no number": lambda jwk: forged(jwk, nbf="later"),
    "not before NaN": lambda jwk: forged(jwk, nbf=float("nan")),
    "not before beyond any float": lambda jwk: forged(jwk, nbf=10**400),
    "issued at beyond any float": lambda jwk: forged(jwk, iat=10**400),
    "subject beyond any number": lambda jwk: forged(jwk, sub="9" * 3_000 + "x"),
    "expiry NaN": lambda jwk: forged(jwk, exp=float("nan")),
    "no subject": lambda jwk: forged(jwk, sub=None),
    "subject zero": lambda jwk: forged(jwk, sub="0"),
    "a name for a subject": lambda jwk: forged(jwk, sub="alice"),
    "no session": lambda jwk: forged(jwk, sid=None),
    "roles that are no list": lambda jwk: forged(jwk, roles=1),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
async def test_verify_invalid_token_is_unauthenticated(
    attack: Callable[[bytes], str], verifier: Verifier, jwk: bytes
) -> None:
    await refused(verifier, attack(jwk))


async def test_verify_token_of_test_helper_is_valid(verifier: Verifier, jwk: bytes) -> None:
    assert (await verifier.verify(forged(jwk))).user_id == 42


async def test_verify_unknown_keys_fetches_keys_once_per_interval(
    verifier: Verifier, identity: Identity, clock: Clock
) -> None:
    for _ in range(100):
        await refused(verifier, forged(new_key()))
    assert identity.asked == 1
    clock.now += 1.0
    await refused(verifier, forged(new_key()))
    assert identity.asked == 2


async def test_verify_new_key_is_fetched_and_old_key_stays_valid(
    verifier: Verifier, identity: Identity, signer: Signer, clock: Clock
) -> None:
    await verifier.verify(signer.sign(1, 1, (), TTL_S))
    second = Signer(new_key(), clock)
    identity.signers.append(second)
    clock.now += 1.0
    assert (await verifier.verify(second.sign(2, 2, (), TTL_S))).user_id == 2
    assert (await verifier.verify(signer.sign(3, 3, (), TTL_S))).user_id == 3


async def test_verify_withdrawn_key_is_refused_after_ttl(
    verifier: Verifier, identity: Identity, signer: Signer, clock: Clock
) -> None:
    await verifier.verify(signer.sign(1, 1, (), TTL_S))
    identity.signers = [Signer(new_key(), clock)]
    clock.now += tokens.KEYS_TTL_S + 1
    await refused(verifier, signer.sign(1, 1, (), TTL_S))


async def test_verify_without_keys_is_unavailable_until_fetched(
    verifier: Verifier, identity: Identity, signer: Signer, clock: Clock
) -> None:
    identity.down = True
    token = signer.sign(1, 1, (), TTL_S)
    with pytest.raises(errors.RoostError) as caught:
        await verifier.verify(token)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    identity.down = False
    clock.now += 1.0
    assert (await verifier.verify(token)).user_id == 1
    # Known keys outlast an outage.
    identity.down = True
    clock.now += tokens.KEYS_TTL_S + 1
    assert (await verifier.verify(signer.sign(2, 1, (), TTL_S))).user_id == 2


async def test_key_fetch_runs_without_caller_and_deadline(
    verifier: Verifier, identity: Identity, signer: Signer
) -> None:
    reset = context.current_call.set(context.Call(actor=context.Actor(99), deadline=1.0))
    try:
        await verifier.verify(signer.sign(1, 1, (), TTL_S))
    finally:
        context.current_call.reset(reset)
    assert identity.asked_as == [context.Call()]


async def test_verified_token_cache_is_bounded(identity: Identity, signer: Signer, clock: Clock) -> None:
    verifier = Verifier(identity.keys, clock, max_verified=2)
    made = [signer.sign(user_id, 1, (), TTL_S) for user_id in (1, 2, 3)]
    for token in made:
        await verifier.verify(token)
    assert [verifier.cached(token) is not None for token in made] == [False, True, True]


async def test_verify_token_of_revoked_session_is_refused(
    verifier: Verifier, signer: Signer, revocations: Revocations
) -> None:
    ended, other = signer.sign(1, 10, (), TTL_S), signer.sign(1, 11, (), TTL_S)
    await verifier.verify(ended)
    await verifier.verify(other)
    revocations.revoke_session(10)
    assert (await refused(verifier, ended)).reason == "TOKEN_REVOKED"
    assert verifier.cached(other) is not None


async def test_verify_token_issued_before_user_revocation_is_refused(
    verifier: Verifier, signer: Signer, revocations: Revocations, clock: Clock
) -> None:
    before = signer.sign(1, 10, (), TTL_S)
    revocations.revoke_user(1, clock.now + 0.5)
    clock.now += 0.6
    after = signer.sign(1, 11, (), TTL_S)
    await refused(verifier, before)
    assert (await verifier.verify(after)).session_id == 11
    # An older revocation that is delivered late changes nothing.
    revocations.revoke_user(1, clock.now - 100)
    await refused(verifier, before)


def test_revocations_are_bounded_and_expire(clock: Clock) -> None:
    revocations = Revocations(clock, TTL_S, max_entries=2)
    for session_id in (1, 2, 3):
        revocations.revoke_session(session_id)
        clock.now += 1
    held = [revocations.is_revoked(context.Actor(9, session_id), clock.now) for session_id in (1, 2, 3)]
    assert held == [False, True, True]
    clock.now += TTL_S
    revocations.revoke_session(4)
    assert not revocations.is_revoked(context.Actor(9, 3), clock.now)


def delivered(body: str, age_s: float = 0.0, appended_after_s: float = 0.0, **fields: int) -> ConsumedEvent:
    event = event_pb2.Event(event_id=1, key=fields["user_id"])
    event.occurred_at.FromMilliseconds(int((NOW - age_s) * 1000))
    for name, value in fields.items():
        setattr(getattr(event, body), name, value)
    appended_ms = int((NOW - age_s + appended_after_s) * 1000)
    return ConsumedEvent(
        offset=1,
        appended_ms=appended_ms,
        topic=body.replace("_", ".", 1),
        key=1,
        event_id=1,
        payload=event.SerializeToString(),
        traceparent="",
    )


async def test_apply_revoking_events_revoke_tokens(revocations: Revocations) -> None:
    await revocations.apply(
        [
            delivered("session_revoked", user_id=1, session_id=10),
            delivered("session_revoked", user_id=2),
            delivered("user_suspended", user_id=3),
            delivered("user_deleted", user_id=4, appended_after_s=0.2),
            delivered("user_updated", user_id=5),
        ]
    )
    actors = [(1, 10), (1, 11), (2, 20), (3, 30), (4, 40), (5, 50)]
    refused = [revocations.is_revoked(context.Actor(*actor), NOW - 1) for actor in actors]
    assert refused == [True, False, True, True, True, False]
    # A token issued between the event's time and its append.
    assert revocations.is_revoked(context.Actor(4, 40), NOW + 0.1)
    assert not revocations.is_revoked(context.Actor(2, 20), NOW + 0.1)


async def test_apply_events_older_than_token_ttl_revoke_nothing(revocations: Revocations) -> None:
    await revocations.apply(
        [
            delivered("session_revoked", age_s=TTL_S + 1, user_id=1, session_id=10),
            delivered("user_suspended", age_s=tokens.MAX_TOKEN_TTL_S + 1, user_id=3),
        ]
    )
    assert not revocations.is_revoked(context.Actor(1, 10), NOW - TTL_S)
    assert not revocations.is_revoked(context.Actor(3, 30), NOW - tokens.MAX_TOKEN_TTL_S - 2)


async def test_verify_token_with_nbf_is_valid_from_then_on(verifier: Verifier, jwk: bytes, clock: Clock) -> None:
    token = forged(jwk, nbf=NOW + 100)
    await refused(verifier, token)
    clock.now += 100
    assert (await verifier.verify(token)).user_id == 42
