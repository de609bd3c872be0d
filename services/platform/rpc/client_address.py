"""Which address a request came from: the peer's, or the one that a trusted proxy names.

A proxy appends its own peer to `X-Forwarded-For`, so the header is believed from the right, and only as far as the proxies that the
settings trust reach. Everything further to the left may have been written by the client.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# An IPv6 customer has a /64 at least: its addresses are one client.
IPV6_PREFIX = 64
# Addresses whose parsed form is kept: about 200 bytes each.
MAX_KNOWN_ADDRESSES = 10_000
# Proxies in a row. A longer chain of trusted addresses is a mistake in the settings, and each costs a look-up.
MAX_HOPS = 16
# The longest address with a zone; what is longer is not looked at, and not kept.
MAX_ADDRESS_CHARS = 64


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Returns the networks written as `10.0.0.0/8`, `2001:db8::/32` or a single address. Raises ValueError if one is none of these."""
    return tuple(ipaddress.ip_network(text) for text in texts)


class TrustedProxies:
    """The networks of proxies whose `X-Forwarded-For` is believed; with none, every peer is the client."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, peer: str) -> bool:
        """Returns whether `peer`, an address without a port, is a trusted proxy; False if it is not an address."""
        if not self._trusted:
            return False
        address = _parsed(peer)
        return address is not None and self._is_trusted(address)

    def client(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """Returns the client's address without a port.

        That is `peer`, unless a trusted proxy is connected: then it is the right-most address of `forwarded_for` (the header's lines,
        in order) that is not itself trusted, or the left-most if all are. Returns `peer` if an entry that has to be read is not an
        address, and if there are more than MAX_HOPS of them.
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
        # All that were read are trusted: the client is one of ours, unless the chain goes on.
        return str(found) if len(entries) <= MAX_HOPS else peer

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


# Every peer is the client.
NO_PROXIES = TrustedProxies(())


def of_grpc_peer(peer: str) -> str:
    """Returns the address of what gRPC calls a peer, such as `ipv4:192.0.2.1:1234` or `ipv6:%5B::1%5D:1234`; "" for a Unix socket."""
    kind, _, rest = peer.partition(":")
    return _without_port(unquote(rest)) if kind in ("ipv4", "ipv6") else ""


@functools.lru_cache(maxsize=MAX_KNOWN_ADDRESSES)
def client_key(address: str) -> str:
    """Returns what limits count an address as: itself, or its /64 network for IPv6. Text that is not an address counts as itself."""
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(found), IPV6_PREFIX), strict=False))
    return address if found is None else str(found)


def _parsed(text: str) -> Address | None:
    """The address without its zone; an IPv4 address written as IPv6 is that IPv4 address."""
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
    """Takes the port and the brackets off `192.0.2.1:80`, `[2001:db8::1]:80` and `[2001:db8::1]`; anything else stays as it is."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.partition(":")
    return host if colon and port.isdigit() and ":" not in port else text
