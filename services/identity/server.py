"""Composition root of the identity service."""

from __future__ import annotations

import secrets

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.common.kit import Kit, Service
from services.common.outbox import Relay
from services.identity.auth_service import AuthService
from services.identity.events import Events
from services.identity.joined import Joiner
from services.identity.password import Passwords
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer, new_key
from services.identity.store.embedded import EmbeddedStore
from services.identity.user_service import UserService

SECRET_BYTES = 32


def _new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


async def build(kit: Kit) -> Service:
    """The identity service over its embedded store. Its keys are made at the first start and kept with the accounts."""
    store = await EmbeddedStore.open(kit.data_dir / "identity.db")
    try:
        pepper = await store.secret("password_pepper", _new_secret)
        refresh_key = await store.secret("refresh_token_key", _new_secret)
        signer = Signer(await store.secret("signing_key", new_key), kit.clock)
    except BaseException:
        # The file's lock would outlive a start that failed.
        await store.close()
        raise
    passwords = Passwords(pepper, kit.settings.bcrypt_cost)
    events = Events(kit.ids, kit.clock)
    joiner = Joiner(GraphServiceStub(kit.channel), TweetServiceStub(kit.channel))
    auth = AuthService(
        store=store,
        joiner=joiner,
        passwords=passwords,
        signer=signer,
        refresh_tokens=RefreshTokens(refresh_key),
        events=events,
        settings=kit.settings,
        ids=kit.ids,
        cursors=kit.cursors,
        clock=kit.clock,
    )
    return Service(
        name=kit.name,
        servicers={
            "roost.identity.v1.AuthService": auth,
            "roost.identity.v1.UserService": UserService(store, joiner, events, kit.ids),
        },
        workers=(Relay(store.db, kit.log),),
        resources=(store, passwords),
    )
