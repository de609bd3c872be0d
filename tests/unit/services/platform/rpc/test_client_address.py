"""Which address a request came from, and what limits count it as."""

from __future__ import annotations

import pytest

from services.platform.rpc.client_address import MAX_HOPS, TrustedProxies, client_key, networks, of_grpc_peer

PROXIES = TrustedProxies(networks(["10.0.0.0/8", "2001:db8:f::/48"]))
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        # Nobody but a trusted proxy is believed.
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.7"], "198.51.100.7"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("2001:db8:f::1", ["2001:db8:1::5"], "2001:db8:1::5"),
        # The right-most that is not ours; what stands to its left the client may have written.
        (PROXY, ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        (PROXY, ["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (PROXY, ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        (PROXY, ["rubbish, 198.51.100.7"], "198.51.100.7"),
        # All are ours: the first of them asks.
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # Spellings that proxies use.
        (PROXY, ["198.51.100.7:4711"], "198.51.100.7"),
        (PROXY, ["[2001:db8:1::5]:4711"], "2001:db8:1::5"),
        (PROXY, ["[2001:db8:1::5]"], "2001:db8:1::5"),
        (PROXY, ["::ffff:198.51.100.7"], "198.51.100.7"),
        # Not an address: the peer.
        (PROXY, ["unknown"], PROXY),
        (PROXY, ["198.51.100.7, "], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, ["198.51.100.7, " + "x" * 10_000], PROXY),
        (PROXY, [", ".join(["198.51.100.7", *["10.0.0.2"] * MAX_HOPS])], PROXY),
        (PROXY, [", ".join(["198.51.100.7", *["10.0.0.2"] * (MAX_HOPS - 1)])], "198.51.100.7"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_client_behind_proxies(peer: str, lines: list[str], client: str) -> None:
    assert PROXIES.client(peer, lines) == client


def test_client_without_trusted_proxies_is_the_peer() -> None:
    assert TrustedProxies(()).client(PROXY, ["198.51.100.7"]) == PROXY
    assert not TrustedProxies(()).trusts(PROXY)


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        networks(["nowhere"])


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:1234", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:1234", "2001:db8::1"),
        ("ipv6:[::1]:1234", "::1"),
        ("unix:/tmp/socket", ""),
        ("", ""),
    ],
)
def test_address_of_a_grpc_peer(peer: str, address: str) -> None:
    assert of_grpc_peer(peer) == address


def test_client_key_of_an_ipv6_customer_is_their_network() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff") != client_key("2001:db8:0:1::1")
    assert client_key("192.0.2.1") == "192.0.2.1"
    assert client_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_key("fe80::1%eth0") == "fe80::/64"
    assert client_key("not:an:address") == "not:an:address"
