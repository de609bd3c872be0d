"""What every channel of ours shares: four ways to make a callable, and the rest of gRPC's interface left empty."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import grpc


class AbstractChannel(grpc.aio.Channel):
    """A channel whose callables come from `_callable`; connections, if any, are its own business."""

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """What starts a call of the kind (`unary_unary`, …) of the method named by its path."""
        raise LookupError(method)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that starts a unary call."""
        return self._callable("unary_unary", method, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that starts a server stream."""
        return self._callable("unary_stream", method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that starts a client stream."""
        return self._callable("stream_unary", method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A callable that starts a bidirectional stream."""
        return self._callable("stream_stream", method, *args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Closes what it opened."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY: whether a server can be reached shows in the calls."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Never changes."""
        await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        """At once."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
