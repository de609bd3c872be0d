"""Composition root of the identity service: the only module that names an adapter."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.identity.auth_service import AuthService
from services.identity.consumer import GROUP, TOPICS, publish_refs
from services.identity.password import Passwords
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer, new_key
from services.identity.store import IdentityStores
from services.identity.store.sqlite import stores as sqlite
from services.identity.token_issuer import TokenIssuer
from services.identity.user_hydrator import UserHydrator
from services.identity.user_service import UserService
from services.platform.backends import cluster_backends_of
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.events.records import EventBuilder
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay

SECRET_BYTES = 32
_new_secret = partial(secrets.token_bytes, SECRET_BYTES)


async def build(context: ServiceContext) -> Service:
    """Builds the service on the stores of the configured backend. Its secret keys are created at the first start and stored."""
    stores, workers = await _open(context)
    try:
        pepper = await stores.secrets.get_or_create("password_pepper", _new_secret)
        refresh_tokens = RefreshTokens(await stores.secrets.get_or_create("refresh_token_key", _new_secret))
        signer = Signer(await stores.secrets.get_or_create("signing_key", new_key), context.clock)
    except BaseException:
        # Otherwise the file stays locked after a failed start.
        await stores.close()
        raise
    passwords = Passwords(pepper, context.settings.bcrypt_cost)
    events = EventBuilder(context.ids, context.clock)
    hydrator = UserHydrator(GraphServiceStub(context.channel), TweetServiceStub(context.channel))
    auth = AuthService(
        stores=stores,
        hydrator=hydrator,
        passwords=passwords,
        tokens=TokenIssuer(signer, refresh_tokens, context.settings, context.ids, context.clock),
        refresh_tokens=refresh_tokens,
        events=events,
        settings=context.settings,
        ids=context.ids,
        cursors=context.cursors,
        clock=context.clock,
    )
    return Service(
        name=context.name,
        servicers={
            "roost.identity.v1.AuthService": auth,
            "roost.identity.v1.UserService": UserService(stores.accounts, hydrator, events, context.ids, KeyedLocks()),
        },
        workers=workers,
        resources=(stores, passwords),
    )


async def _open(context: ServiceContext) -> tuple[IdentityStores, Sequence[Worker]]:
    """Opens the stores of the configured backend; returns them with their workers."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await sqlite.open_stores(context.data_dir / "identity.db")
        return embedded, (Relay(embedded.db, context.log),)
    # Imported only on the cluster backend, because the drivers are slow to import.
    from services.identity.store.cassandra.stores import open_stores

    stores = await open_stores(cluster, context.log, context.clock)
    return stores, (stores.outbox, context.log.consumer(GROUP, TOPICS, publish_refs(stores.shared_refs.write)))
