"""Tests the client address of a request, and the key that limits count it by."""

from __future__ import annotations

import pytest

from services.platform.rpc.client_address import MAX_HOPS, TrustedProxies, client_key, networks, of_grpc_peer

PROXIES = TrustedProxies(networks(["10.0.0.0/8", "2001:db8:f::/48"]))
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        # The header of an untrusted peer is ignored.
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.7"], "198.51.100.7"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("2001:db8:f::1", ["2001:db8:1::5"], "2001:db8:1::5"),
        # The right-most untrusted address; the client may have written all to the left of it.
        (PROXY, ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        (PROXY, ["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (PROXY, ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        (PROXY, ["rubbish, 198.51.100.7"], "198.51.100.7"),
        # All are trusted: the left-most is the client.
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # Formats that proxies use.
        (PROXY, ["198.51.100.7:4711"], "198.51.100.7"),
        (PROXY, ["[2001:db8:1::5]:4711"], "2001:db8:1::5"),
        (PROXY, ["[2001:db8:1::5]"], "2001:db8:1::5"),
        (PROXY, ["::ffff:198.51.100.7"], "198.51.100.7"),
        # No address: the peer is the client.
        (PROXY, ["unknown"], PROXY),
        (PROXY, ["198.51.100.7, "], PROXY),
        (PROXY, [""], PROXY),
        (PROXY, ["198.51.100.7, " + "x" * 10_000], PROXY),
        (PROXY, [", ".join(["198.51.100.7", *["10.0.0.2"] * MAX_HOPS])], PROXY),
        (PROXY, [", ".join(["198.51.100.7", *["10.0.0.2"] * (MAX_HOPS - 1)])], "198.51.100.7"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_client_behind_trusted_proxies_is_rightmost_untrusted_address(peer: str, lines: list[str], client: str) -> None:
    assert PROXIES.client(peer, lines) == client


def test_client_without_trusted_proxies_is_peer() -> None:
    assert TrustedProxies(()).client(PROXY, ["198.51.100.7"]) == PROXY
    assert not TrustedProxies(()).trusts(PROXY)


def test_networks_malformed_network_raises_value_error() -> None:
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
def test_of_grpc_peer_returns_address_without_port(peer: str, address: str) -> None:
    assert of_grpc_peer(peer) == address


def test_client_key_ipv6_address_is_its_64_bit_network() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff") != client_key("2001:db8:0:1::1")
    assert client_key("192.0.2.1") == "192.0.2.1"
    assert client_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_key("fe80::1%eth0") == "fe80::/64"
    assert client_key("not:an:address") == "not:an:address"
