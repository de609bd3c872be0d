"""Composition root of the identity service."""

from __future__ import annotations

import secrets
from functools import partial

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.identity.auth_service import AuthService
from services.identity.password import Passwords
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer, new_key
from services.identity.store import IdentityStores
from services.identity.token_issuer import TokenIssuer
from services.identity.user_hydrator import UserHydrator
from services.identity.user_service import UserService
from services.platform.auth.tokens import Revocations
from services.platform.backends import OpenedStore, open_store
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.events.records import EventBuilder
from services.platform.service import Service, ServiceContext

# Length in bytes of the pepper and of the key of refresh tokens: the digest length of HMAC-SHA-256.
SECRET_BYTES = 32
_new_secret = partial(secrets.token_bytes, SECRET_BYTES)


async def build(context: ServiceContext) -> Service:
    """Builds the service on the stores of the configured backend. At the first start, creates the secret keys of the
    service and stores them."""
    opened: OpenedStore[IdentityStores] = await open_store(context)
    stores = opened.store
    try:
        pepper = await stores.secrets.get_or_create("password_pepper", _new_secret)
        refresh_tokens = RefreshTokens(await stores.secrets.get_or_create("refresh_token_key", _new_secret))
        signer = Signer(await stores.secrets.get_or_create("signing_key", new_key), context.clock)
    except BaseException:
        # Closes the stores, because otherwise the database file would stay locked after a failed start.
        await stores.close()
        raise
    passwords = Passwords(pepper, context.settings.bcrypt_cost)
    events = EventBuilder(context.ids, context.clock)
    revocations = context.shared_by_process(
        Revocations, lambda: Revocations(context.clock, context.settings.access_token_ttl_s)
    )
    hydrator = UserHydrator(GraphServiceStub(context.channel), TweetServiceStub(context.channel))
    auth = AuthService(
        stores=stores,
        hydrator=hydrator,
        passwords=passwords,
        tokens=TokenIssuer(signer, refresh_tokens, context.settings, context.ids, context.clock),
        refresh_tokens=refresh_tokens,
        events=events,
        revocations=revocations,
        settings=context.settings,
        ids=context.ids,
        cursors=context.cursors,
        clock=context.clock,
    )
    return Service(
        name=context.name,
        servicers={
            "roost.identity.v1.AuthService": auth,
            "roost.identity.v1.UserService": UserService(
                stores.accounts, hydrator, events, revocations, context.ids, KeyedLocks(), context.clock
            ),
        },
        workers=opened.workers,
        resources=(stores, passwords),
    )
