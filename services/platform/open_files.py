"""Raises the limit of open file descriptors and divides it between client connections and the process's own files.

A process without a free descriptor can neither accept a connection nor open a file of a store. The HTTP and the gRPC
server therefore bound their connections by this limit.
"""

from __future__ import annotations

import resource

from services.platform.rpc import errors

# Maximum number of open file descriptors to which the limit is raised: far more than the stores and 10,000 connections
# of each server need. Some systems allow a billion, and programs that loop over all possible descriptors would then
# take minutes.
MOST_WANTED = 65_536
# Number of descriptors reserved for stores, the search index and connections to other servers. The embedded backend has
# about 70 files open; merges of the search index add dozens for a short time.
OWN_FILES = 256
# Minimum limit of descriptors with which a process starts. With a lower limit, almost no descriptors would remain for
# client connections.
LEAST = 2 * OWN_FILES
# Maximum number of client connections of one server (HTTP or gRPC), whatever the limit of descriptors: an idle
# connection takes about 20 kB of memory. For more connections, run more processes.
MAX_CONNECTIONS = 10_000


def limit() -> int:
    """Returns the soft limit of open descriptors of this process; MOST_WANTED if it is unlimited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_WANTED if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raises the soft limit of open descriptors to the hard limit, at most to MOST_WANTED, and returns the new limit.

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
    """Returns the maximum number of HTTP connections with a limit of `files` descriptors.

    It is three quarters of (`files` - OWN_FILES), at least 1, at most MAX_CONNECTIONS.
    """
    return max(1, min(MAX_CONNECTIONS, (files - OWN_FILES) * 3 // 4))


def grpc_connections(files: int) -> int:
    """Returns the maximum number of gRPC connections with a limit of `files` descriptors.

    It is one quarter of (`files` - OWN_FILES), at least 1, at most MAX_CONNECTIONS. It is less than for HTTP, because
    each gRPC connection carries many concurrent calls.
    """
    return max(1, min(MAX_CONNECTIONS, (files - OWN_FILES) // 4))
