"""The base class of this package's channels: grpc.aio.Channel with all four call types reduced to one method."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import grpc


class AbstractChannel(grpc.aio.Channel):
    """A channel that creates all callables with `_callable`.

    A call over a connection starts when it is made, as in grpc.aio, so several calls run at the same time even if they
    are awaited one after the other. A unary call over the in-process channel starts only when it is awaited.

    This base class owns no connection: its state is always READY, and `close` does nothing.
    """

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Returns a callable that starts calls of one method.

        `kind` is the name of the channel's method, such as `unary_unary`. `method` is the path, such as
        `/roost.tweet.v1.TweetService/GetTweet`. The other arguments are those of grpc.aio: serializers, by name or in
        order. Subclasses override this method; in the base class it raises LookupError.
        """
        raise LookupError(method)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Returns a callable that starts a unary call."""
        return self._callable("unary_unary", method, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Returns a callable that starts a server stream."""
        return self._callable("unary_stream", method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Returns a callable that starts a client stream."""
        return self._callable("stream_unary", method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Returns a callable that starts a bidirectional stream."""
        return self._callable("stream_stream", method, *args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Closes the connections that the channel owns; here none.

        Calls in progress get `grace` seconds to end; if `grace` is None, they are cancelled at once.
        """

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns READY always. If no server can be reached, the calls fail."""
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits forever, because the state never changes."""
        await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        """Returns immediately, because the channel is always READY."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
