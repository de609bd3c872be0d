"""The Python SDK of Roost: a thin, typed, synchronous client over the generated stubs.

    from roost_client import connect

    with connect("127.0.0.1:50051") as roost:
        roost.login("alice", "correct horse battery")
        for tweet in roost.home_timeline():
            ...

Answers are the API's own messages; refusals are raised as `ApiError`; lists are iterators that turn pages by themselves.
"""

from roost_client.client import Client, connect
from roost_client.errors import ApiError

__all__ = ["ApiError", "Client", "connect"]
