"""Composition root of the tweet service: the only module that names an adapter."""

from __future__ import annotations

from services.common.hydrate import Hydrator
from services.common.kit import Kit, Service
from services.common.outbox import Relay
from services.tweet.service import TweetServicer
from services.tweet.store.embedded import EmbeddedTweetStore
from services.tweet.writes import Writes


async def build(kit: Kit) -> Service:
    """The service on its embedded store, `tweet.db` in the data directory."""
    store = await EmbeddedTweetStore.open(kit.data_dir / "tweet.db")
    hydrator = Hydrator(kit.channel)
    writes = Writes(store, hydrator, kit.ids, kit.clock, kit.settings.edit_window_s)
    servicer = TweetServicer(store, writes, hydrator, kit.cursors, kit.clock, kit.settings.delete_grace_s)
    return Service(
        kit.name,
        servicers={"roost.tweet.v1.TweetService": servicer},
        workers=(Relay(store.db, kit.log),),
        resources=(store,),
    )
