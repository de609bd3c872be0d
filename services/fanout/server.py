"""Composition root of the fan-out service."""

from __future__ import annotations

from services.fanout.consumer import LARGE_BATCH, LARGE_TOPIC, TOPICS, Fanout
from services.fanout.delivery_status import Receipts
from services.fanout.service import FanoutService
from services.platform.events import outbox
from services.platform.events.log import Lag
from services.platform.service import Kit, Service
from services.shared.celebrity_tiers import Tiers


async def build(kit: Kit) -> Service:
    """The fan-out service: two consumers of the log, one for everybody and one for the large."""
    settings = kit.settings
    tiers = Tiers(kit.channel, settings.clock_margin_s)
    receipts = Receipts(kit.clock)
    fanout = Fanout(kit.channel, kit.log, tiers, receipts, settings.timeline_mode, kit.clock)
    main = kit.log.consumer("fanout", TOPICS, fanout.apply)
    large = kit.log.consumer("fanout-large", (LARGE_TOPIC,), fanout.apply_large, LARGE_BATCH)

    async def unrelayed() -> Lag:
        return await outbox.waiting(kit.log, TOPICS, int(kit.clock() * 1000))

    return Service(
        name=kit.name,
        servicers={"roost.fanout.v1.FanoutService": FanoutService(main, large, receipts, unrelayed)},
        workers=(tiers, main, large),
    )
