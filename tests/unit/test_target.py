"""Where accounts may connect to."""

from __future__ import annotations

import pytest

from core.domain.target import forbidden, is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::a83f:8110",
        "2002:a9fe:a9fe::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "metadata.google.internal",
        "Metadata.Google.Internal.",
    ],
)
def test_nothing_may_connect_there(host: str) -> None:
    assert forbidden(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1", "8.8.8.8", "fd12::1", "64:ff9b::8.8.8.8", "smtp.example.org"]
)
def test_anything_may_connect_there(host: str) -> None:
    assert forbidden(host) is None


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "192.168.1.1", "127.0.0.1", "::1", "fd12::1", "100.64.0.1", "64:ff9b::10.0.0.1"]
)
def test_private_addresses_can_be_closed(host: str) -> None:
    assert forbidden(host, allow_private=False)
    assert forbidden("8.8.8.8", allow_private=False) is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("a.localhost.", True),
        ("localhost.example.org", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
