"""Where an account may connect to: never link-local and cloud metadata addresses, whatever the settings say.

Cloud metadata services give credentials to whoever asks from the machine itself; an SMTP client can be talked into
asking. Checked when settings are saved, and again by whoever connects, for what a name resolves to.
"""

from __future__ import annotations

import ipaddress

METADATA = frozenset(
    {
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # EC2, IPv6
        "fd20:ce::254",  # GCP, IPv6
    }
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # what DNS64 makes of every IPv4 address in an IPv6 network
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})


def is_loopback(host: str) -> bool:
    """A loopback address or localhost by name."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a literal means, IPv4 in IPv6 unwrapped; None: it is a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _embedded(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that a translator or tunnel takes packets to (NAT64, RFC 6052; 6to4, RFC 3056)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour is not None:
            return address.sixtofour
    return address


def forbidden(host: str, *, allow_private: bool = True) -> str | None:
    """Why nothing may connect there; None: it may. A name is judged by itself, not by what it resolves to."""
    literal = address_of(host)
    address = None if literal is None else _embedded(literal)
    if address is None:
        return "is a cloud metadata service" if host.rstrip(".").lower() in METADATA_NAMES else None
    if str(address) in METADATA:
        return "is a cloud metadata service"
    if address.is_link_local:
        return "is a link-local address"
    if address.is_multicast or address.is_unspecified or (address.is_reserved and not address.is_loopback):
        return "is no address of a server"
    if not allow_private and not address.is_global:
        return "is a private address (MPU_ALLOW_PRIVATE_TARGETS)"
    return None
