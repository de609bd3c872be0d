"""The Python SDK of Roost: a thin, typed, synchronous client over the generated stubs.

    from roost_client import connect

    with connect("127.0.0.1:50051") as roost:
        roost.login("alice", "correct horse battery")
        for tweet in roost.home_timeline():
            ...

Methods return the API's own messages. A failed call raises `ApiError`. Lists are iterators that request further pages
when they need them.
"""

from roost_client.client import Client, connect
from roost_client.errors import ApiError

__all__ = ["ApiError", "Client", "connect"]
