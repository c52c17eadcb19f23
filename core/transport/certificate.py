"""What a server's certificate says of itself, for people: whom it is for, who signed it, how long it holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

DAY_SECONDS = 86_400.0
SHOWN_NAMES = 6


@dataclass(frozen=True, slots=True)
class Certificate:
    """Times in seconds since the epoch."""

    subject: str
    names: tuple[str, ...]  # that it holds for: DNS names and addresses
    issuer: str
    starts_at: float
    ends_at: float
    self_signed: bool  # names itself as its issuer

    def days_left(self, now: float) -> int:
        """Whole days until it ends; negative: since it ended."""
        return int((self.ends_at - now) // DAY_SECONDS)

    @property
    def shown_names(self) -> str:
        """The first of them."""
        more = len(self.names) - SHOWN_NAMES
        return ", ".join(self.names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

    def described(self, now: float) -> str:
        """In one line."""
        names = f" (for {self.shown_names})" if self.names and self.names != (self.subject,) else ""
        issuer = "signed by itself" if self.self_signed else f"by {self.issuer}"
        day = datetime.fromtimestamp(self.ends_at, UTC).date().isoformat()
        days = self.days_left(now)
        left = f"{days} days left" if days >= 0 else f"ended {-days} days ago"
        return f"{self.subject}{names}, {issuer}, until {day} ({left})"


def read_certificate(der: bytes) -> Certificate | None:
    """None where it can't be read: a certificate is what its owner makes of it."""
    try:
        found = x509.load_der_x509_certificate(der)
        names: tuple[str, ...] = ()
        try:
            listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = tuple(
                map(str, (*listed.get_values_for_type(x509.DNSName), *listed.get_values_for_type(x509.IPAddress)))
            )
        except x509.ExtensionNotFound:
            pass
        return Certificate(
            subject=_name(found.subject, NameOID.COMMON_NAME) or (names[0] if names else _name(found.subject)),
            names=names,
            issuer=_name(found.issuer),
            starts_at=found.not_valid_before_utc.timestamp(),
            ends_at=found.not_valid_after_utc.timestamp(),
            self_signed=found.subject == found.issuer,
        )
    except (ValueError, TypeError, OverflowError):  # malformed names, times out of range
        return None


def _name(name: x509.Name, *kinds: x509.ObjectIdentifier) -> str:
    """The common name, else the organisation; or the first of these kinds."""
    for kind in kinds or (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME):
        for attribute in name.get_attributes_for_oid(kind):
            return str(attribute.value)
    return "" if kinds else "nobody"
