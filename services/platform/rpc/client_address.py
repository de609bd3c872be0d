"""Determines the address of the client: the address of the connection's peer, or the address that a trusted proxy
reports.

A proxy appends the address of its own peer to `X-Forwarded-For`. So the header is read from the right, until an address
that is not in the setting `trusted_proxies`: this is the client. The client itself may have written everything further
to the left.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# A provider gives each IPv6 customer a /64 or more, so all addresses of a /64 count as one client.
IPV6_PREFIX = 64
# Maximum number of addresses in each of the two caches below, about 200 bytes each: 4 MB. The least recently used is
# evicted.
MAX_KNOWN_ADDRESSES = 10_000
# Maximum number of entries of X-Forwarded-For that are read. If all of them are trusted proxies and more are left, the
# peer counts as the client: a longer chain of proxies is a mistake in the settings. The bound also limits the work that
# a client can cause with a long header.
MAX_HOPS = 16
# Maximum length of an address, including its zone, in characters. Longer text is not an address: it is neither parsed
# nor cached.
MAX_ADDRESS_CHARS = 64


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Returns the networks that the texts name, each written as `10.0.0.0/8`, `2001:db8::/32` or a single address.
    Raises ValueError if a text is in none of these forms."""
    return tuple(ipaddress.ip_network(text) for text in texts)


class TrustedProxies:
    """The networks of the proxies whose `X-Forwarded-For` is used. If there are none, the client is always the peer."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, peer: str) -> bool:
        """Returns True if `peer`, an address without a port, is a trusted proxy; False also if `peer` is not an
        address."""
        if not self._trusted:
            return False
        address = _parsed(peer)
        return address is not None and self._is_trusted(address)

    def client(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """Returns the client's address without a port. `forwarded_for` holds the lines of `X-Forwarded-For` in order.

        Returns `peer` if it is not a trusted proxy. Otherwise returns the right-most address of the header that is not
        trusted, or the left-most address if all are trusted. Returns `peer` if an entry that is read is not an address,
        or if more than MAX_HOPS entries would have to be read.
        """
        if not forwarded_for or not self.trusts(peer):
            return peer
        entries = ",".join(forwarded_for).rsplit(",", MAX_HOPS)
        found: Address | None = None
        for entry in reversed(entries[-MAX_HOPS:]):
            found = _parsed(_without_port(entry.strip()))
            if found is None:
                return peer
            if not self._is_trusted(found):
                return str(found)
        # All entries that were read are trusted, so the client is a trusted host itself, unless unread entries remain.
        return str(found) if len(entries) <= MAX_HOPS else peer

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


# Trusts no proxy: the client is always the peer.
NO_PROXIES = TrustedProxies(())


def of_grpc_peer(peer: str) -> str:
    """Returns the address in a gRPC peer string, such as `ipv4:192.0.2.1:1234` or `ipv6:%5B::1%5D:1234`; "" for a Unix
    socket."""
    kind, _, rest = peer.partition(":")
    return _without_port(unquote(rest)) if kind in ("ipv4", "ipv6") else ""


@functools.lru_cache(maxsize=MAX_KNOWN_ADDRESSES)
def client_key(address: str) -> str:
    """Returns the key under which limits count a client: an IPv4 address, or the /64 network of an IPv6 address.

    Returns text that is not an address unchanged.
    """
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(found), IPV6_PREFIX), strict=False))
    return address if found is None else str(found)


def _parsed(text: str) -> Address | None:
    """Returns the address without its zone, an IPv4-mapped IPv6 address as IPv4; None if the text is not an address."""
    return None if len(text) > MAX_ADDRESS_CHARS else _parsed_short(text)


@functools.lru_cache(maxsize=MAX_KNOWN_ADDRESSES)
def _parsed_short(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _without_port(text: str) -> str:
    """Returns the host of `192.0.2.1:80`, `[2001:db8::1]:80` or `[2001:db8::1]`, without brackets; other text
    unchanged."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.partition(":")
    return host if colon and port.isdigit() and ":" not in port else text
