"""How many files and sockets a process may have open, and which part of them connections from outside may take.

A process without a free descriptor can neither accept a connection nor open a store's file, so both servers bound their connections
by what the system allows this process.
"""

from __future__ import annotations

import resource

from services.platform.rpc import errors

# Far above what 10,000 connections of each server and the stores need; some systems allow a billion, which tools then walk through.
MOST_WANTED = 65_536
# For stores, the search index, and connections to other servers: the embedded backend has 70 open, and merges add dozens for moments.
OWN_FILES = 256
# Below this there would be next to nothing left for connections.
LEAST = 2 * OWN_FILES
# Each open connection costs about 20 kB idle; more of them are for more processes.
MAX_CONNECTIONS = 10_000


def limit() -> int:
    """Returns how many descriptors this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_WANTED if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raises this process's soft limit to its hard one, up to MOST_WANTED, and returns the limit.

    Raises FAILED_PRECONDITION if the system allows fewer than LEAST.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_WANTED if hard == resource.RLIM_INFINITY else min(hard, MOST_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    found = limit()
    if found < LEAST:
        raise errors.failed_precondition(
            f"this process may open {found} files, and needs {LEAST}: raise its limit, in a shell with `ulimit -n 4096`"
        )
    return found


def http_connections(files: int) -> int:
    """Returns how many of `files` descriptors HTTP connections may take: three quarters of those that are not the process's own."""
    return max(1, min(MAX_CONNECTIONS, (files - OWN_FILES) * 3 // 4))


def grpc_connections(files: int) -> int:
    """Returns how many of `files` descriptors gRPC connections may take: the last quarter. Each carries many calls at once."""
    return max(1, min(MAX_CONNECTIONS, (files - OWN_FILES) // 4))
