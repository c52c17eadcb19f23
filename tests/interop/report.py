"""The table, for a terminal and for docs/interop.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.interop.mails import mails
from tests.interop.trial import EXTENSIONS, WAYS, Row, Way

_HEAD = """\
# Other people's servers

The same mails through each server, as `make interop` found it. Postfix, Exim and OpenSMTPD are Debian's packages, each
with a configuration of its own; they pass on to a scripted server, where the octets are compared. The others keep what
they get. "n of n intact" means: all octets as expected, by SHA-256, behind the trace fields that the server puts on
top, and each recipient once. What was negotiated was seen on the wire, or told by the check of the account.

"""


_NOTES = """
Notes

- Haraka answers 503 to an envelope behind a final dot, which RFC 2920 section 3.1 allows (its guard against smuggling).
  MPU then takes that mail to another connection, without counting an attempt, and sends one at a time from then on.
- Haraka by itself breaks lines at 992 octets, six fewer than RFC 5322 allows; here it is told 1000 with CRLF.
- Debian's OpenSMTPD 6.8.0p2 ends each TLS handshake with its "SSL routines::EVP lib", with MPU as with smtplib,
  whether its key is RSA or EC: its ways over TLS could not be tried.
- An octet that arrives changed, a mail that doesn't arrive, or one that does twice makes `make interop` fail.
"""


def _way(way: Way | None) -> str:
    if way is None:
        return ""
    if not way.mails:
        return way.negotiated + (", FAULT" if way.faults else "")
    text = f"{way.intact} of {way.mails - len(way.refused)} intact"
    if way.refused:
        text += f", {len(way.refused)} rightly refused (5.6.7)"
    if way.negotiated:
        text += f", {way.negotiated.lstrip(', ')}"
    return text + (", FAULT" if way.faults else "")


def terminal(rows: Sequence[Row]) -> str:
    """A line a fact."""
    lines: list[str] = []
    for row in rows:
        lines.append(f"{row.server} {row.version}{': left out, ' + row.left_out if row.left_out else ''}")
        lines += [f"  {name:12}{_way(row.ways.get(name))}" for name in WAYS if name in row.ways]
        lines += [f"  {name:12}{text}" for name, text in row.extensions.items()]
        lines += [f"  FAULT {fault}" for fault in _faults(row)]
    return "\n".join(lines) + "\n"


def _faults(row: Row) -> list[str]:
    return row.faults + [f"{name}: {fault}" for name, way in row.ways.items() for fault in way.faults]


def markdown(rows: Sequence[Row]) -> str:
    """docs/interop.md."""
    there = [row for row in rows if not row.left_out]
    lines = [
        "| | " + " | ".join(f"{row.server} {row.version}" for row in there) + " |",
        "| --- " * (len(there) + 1) + "|",
    ]
    for name in WAYS:
        lines.append(f"| {name} | " + " | ".join(_way(row.ways.get(name)) for row in there) + " |")
    for name in EXTENSIONS:
        lines.append(f"| {name} | " + " | ".join(row.extensions.get(name, "") for row in there) + " |")
    text = _HEAD + "\n".join(lines) + "\n"
    text += f"\nThe mails: {', '.join(mail.name for mail in mails())}.\n"
    text += _NOTES
    for row in rows:
        if row.left_out:
            text += f"\nLeft out: {row.server}: {row.left_out}.\n"
    faults = [f"- {row.server}: {fault}" for row in there for fault in _faults(row)]
    return text + ("\n## Faults\n\n" + "\n".join(faults) + "\n" if faults else "")
