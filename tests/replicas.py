"""Clients of a mesh of equal processes that send each request to another process than the last one, as behind a load balancer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import grpc.aio
import httpx

from services.platform.transport.base import AbstractChannel


class AlternatingChannel(AbstractChannel):
    """Sends its calls over the channels in turn."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._turn = itertools.cycle(range(len(channels)))

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        starts = [getattr(channel, kind)(method, *args, **kwargs) for channel in self._channels]

        def begin(*sent: Any, **options: Any) -> Any:
            return starts[next(self._turn)](*sent, **options)

        return begin


class AlternatingTransport(httpx.AsyncHTTPTransport):
    """Sends its requests to the local ports in turn."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__()
        self._turn = itertools.cycle(ports)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(port=next(self._turn))
        return await super().handle_async_request(request)
