"""Reads all users of a mesh, for the operator."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from roost.identity.v1 import user_service_pb2, user_service_pb2_grpc

from roost_cli.connection import Metadata
from roost_cli.rate_control import deadline_s

SCAN_USERS = "/roost.identity.v1.UserService/ScanUsers"


async def scan_users(channel: grpc.aio.Channel, operator: Metadata) -> AsyncIterator[user_service_pb2.ScannedUser]:
    """Yields every user by ascending id, including suspended and deactivated ones. Raises AioRpcError if the scan
    fails; users may have been yielded before."""
    stub = user_service_pb2_grpc.UserServiceStub(channel)
    call = stub.ScanUsers(user_service_pb2.ScanUsersRequest(), metadata=operator, timeout=deadline_s(SCAN_USERS))
    async for page in call:
        for user in page.users:
            yield user
