"""The table of addresses, and the check of a host before a crawl."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.crawler.guard import (
    AddressRefused,
    HostRefused,
    HostUnreachable,
    HostUnresolvable,
    check_host,
    is_allowed_address,
    is_public_address,
)

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:db8::1",
    "2002:a9fe:a9fe::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "4000::1",
    "2606:4700:4700::1111%eth0",
    "::ffff:8.8.8.8%eth0",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:8.8.8.8",
    "3ffe::1",
    "2001:2::1",
    "2001:3::1",
    "2001:4:112::1",
    "2001:20::1",
    "2001:30::1",
    "2620:4f:8000::1",
    "100:0:0:1::1",
    "64:ff9b:1:ffff::1",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b::10.0.0.1",
    "64:ff9b:0:0:1::808:808",
    "fd20:ce::254",
    "fd00:42::42",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.1",
    "126.255.255.255",
    "128.0.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
    "168.63.129.15",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "2400:cb00::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2001:4860:4860::8888",
]
NO_ADDRESS = [
    "",
    " ",
    "example.com",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "08.8.8.8",
    "[::1]",
    "\uff18.8.8.8",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_of_the_public_internet_is_refused(address: str) -> None:
    assert not is_public_address(address)
    assert not is_public_address(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_public_internet_is_public(address: str) -> None:
    assert is_public_address(address)
    assert is_allowed_address(address, allow_private=False)


@pytest.mark.parametrize("text", NO_ADDRESS)
def test_what_is_not_an_address_in_its_canonical_spelling_is_not_public(text: str) -> None:
    assert not is_public_address(text)
    assert not is_allowed_address(text, allow_private=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.5", "fd12::1", "0.0.0.0"])
def test_allow_private_opens_a_persons_own_machine_and_network(address: str) -> None:
    assert is_allowed_address(address, allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fe80::1%eth0",
        "224.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "::ffff:169.254.169.254",
        "100.100.100.200",
        "::ffff:100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "240.0.0.1",
        "2002:7f00:1::",
        "64:ff9b:1::7f00:1",
        "fec0::1",
        "::127.0.0.1",
        "::1%lo",
        "2606:4700::5efe:127.0.0.1",
    ],
)
def test_allow_private_does_not_open_metadata_link_local_and_multicast(address: str) -> None:
    assert not is_allowed_address(address, allow_private=True)


# IANA's registries of special-purpose addresses (2025), and what else is no website: the first and the last address
# of each, and what stands just outside.
SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001::/32",
    "2001:1::1/128",
    "2001:2::/48",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]


@pytest.mark.parametrize("network", SPECIAL)
def test_a_special_purpose_network_is_refused_from_its_first_to_its_last_address(network: str) -> None:
    whole = ip_network(network)
    for address in (whole[0], whole[whole.num_addresses // 2], whole[-1]):
        assert not is_public_address(address), address
        if address.version == 4:
            # As it is spelled inside of an IPv6 address, too.
            for prefix in ("::ffff:", "64:ff9b::", "::", "::ffff:0:", "64:ff9b:1::"):
                assert not is_public_address(f"{prefix}{address}"), (prefix, address)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_no_address_is_more_public_to_us_than_to_the_standard_library(address: IPv4Address | IPv6Address) -> None:
    if is_public_address(address):
        embedded = ip_address(int(address) & 0xFFFFFFFF) if address in ip_network("64:ff9b::/96") else address
        assert embedded.is_global
        assert not embedded.is_multicast


def test_a_refused_address_is_an_os_error_that_names_host_and_address() -> None:
    error = AddressRefused("evil.example", "10.0.0.1")
    assert isinstance(error, OSError)
    assert (error.host, error.address) == ("evil.example", "10.0.0.1")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.1", "0", "[::1]", "localhost"]
)
def test_every_spelling_of_the_own_machine_is_refused_with_a_way_out(host: str) -> None:
    with pytest.raises(HostRefused, match="--allow-private"):
        check_host(host, 80)


def test_the_metadata_address_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(HostRefused, match="never crawled"):
        check_host("169.254.169.254", 80, allow_private=True)


def test_a_name_that_does_not_resolve_is_said_to_be_so() -> None:
    for host in ("does-not-exist.invalid", "a" * 300, "x..y", ""):
        if host:
            with pytest.raises(HostUnresolvable, match="has no address"):
                check_host(host, 80)


def test_a_refused_connection_is_said_to_be_so() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(HostUnreachable, match=f"refused the connection on port {port}"):
            check_host("127.0.0.1", port, allow_private=True)


def test_a_listening_server_passes_the_check() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert check_host("127.0.0.1", server.getsockname()[1], allow_private=True) == "127.0.0.1"
