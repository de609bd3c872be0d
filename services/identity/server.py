"""Composition root of the identity service: the only module that names an adapter."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.identity.auth_service import AuthService
from services.identity.consumer import GROUP, TOPICS, sharing
from services.identity.events import Events
from services.identity.password import Passwords
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer, new_key
from services.identity.store import Store
from services.identity.store.sqlite.store import EmbeddedStore
from services.identity.user_hydrator import UserHydrator
from services.identity.user_service import UserService
from services.platform.backends import cluster_backends_of
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay

SECRET_BYTES = 32


def _new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


async def build(context: ServiceContext) -> Service:
    """The identity service over the store of its family. Its keys are made at the first start and kept with the accounts."""
    store, workers = await _open(context)
    try:
        pepper = await store.secret("password_pepper", _new_secret)
        refresh_key = await store.secret("refresh_token_key", _new_secret)
        signer = Signer(await store.secret("signing_key", new_key), context.clock)
    except BaseException:
        # The file's lock would outlive a start that failed.
        await store.close()
        raise
    passwords = Passwords(pepper, context.settings.bcrypt_cost)
    events = Events(context.ids, context.clock)
    joiner = UserHydrator(GraphServiceStub(context.channel), TweetServiceStub(context.channel))
    auth = AuthService(
        store=store,
        joiner=joiner,
        passwords=passwords,
        signer=signer,
        refresh_tokens=RefreshTokens(refresh_key),
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
            "roost.identity.v1.UserService": UserService(store, joiner, events, context.ids, KeyedLocks()),
        },
        workers=workers,
        resources=(store, passwords),
    )


async def _open(context: ServiceContext) -> tuple[Store, Sequence[Worker]]:
    """The store, and what runs beside it."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await EmbeddedStore.open(context.data_dir / "identity.db")
        return embedded, (Relay(embedded.db, context.log),)
    # Not before it is asked for: drivers are slow to import.
    from services.identity.store.cassandra.store import CassandraStore

    store = await CassandraStore.open(cluster, context.log, context.clock)
    return store, (store.outbox, context.log.consumer(GROUP, TOPICS, sharing(store.share)))
