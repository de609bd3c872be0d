"""The Python SDK of Roost: a thin, typed, synchronous client over the generated stubs.

    from roost_client import connect

    with connect("127.0.0.1:50051") as roost:
        roost.login("alice", "correct horse battery")
        for tweet in roost.home_timeline():
            ...

Methods return the messages of the gRPC API. A failed call raises `ApiError`. Methods that list items return an
iterator, which requests the next page when the items of the last one are used up.
"""

from roost_client.client import Client, connect
from roost_client.errors import ApiError

__all__ = ["ApiError", "Client", "connect"]
