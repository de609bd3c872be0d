"""Composition root of the fan-out service."""

from __future__ import annotations

from services.fanout.consumer import LARGE_BATCH, LARGE_TOPIC, TOPICS, Fanout
from services.fanout.delivery_status import DeliveryTracker
from services.fanout.service import FanoutService
from services.platform.events import outbox
from services.platform.events.log import Lag
from services.platform.service import Service, ServiceContext
from services.shared.celebrity_tiers import CelebritySubscriber


async def build(context: ServiceContext) -> Service:
    """Returns the fan-out service. It has two consumers: of TOPICS, and of LARGE_TOPIC."""
    settings = context.settings
    tiers = CelebritySubscriber(context.channel, settings.clock_margin_s)
    tracker = DeliveryTracker(context.clock)
    fanout = Fanout(context.channel, context.log, tiers, tracker, settings.timeline_mode, context.clock)
    main = context.log.consumer("fanout", TOPICS, fanout.apply)
    large = context.log.consumer("fanout-large", (LARGE_TOPIC,), fanout.apply_large, LARGE_BATCH)

    async def outbox_lag() -> Lag:
        return await outbox.pending_lag(context.log, TOPICS, int(context.clock() * 1000))

    return Service(
        name=context.name,
        servicers={"roost.fanout.v1.FanoutService": FanoutService(main, large, tracker, outbox_lag)},
        workers=(tiers, main, large),
    )
