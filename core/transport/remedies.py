"""What to do where no connection could be had: by the codes of ConnectFailed, and where the server says nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

from core.domain.account import Account, Security
from core.domain.presets import TLS_PORTS

REMEDIES = {
    "dns_failed": "Check the account's host name and this machine's name service.",
    "connect_failed": "Check host and port, and that the firewall lets this machine out (587 or 465, not 25).",
    "target_forbidden": "Correct the account's host, or what its name resolves to.",
    "connect_timeout": "Check host and port, and that the firewall lets this machine out (587 or 465, not 25).",
    "tls_failed": "Check that port and security of the account fit: 587 is starttls, 465 is tls.",
    "certificate_untrusted": "Give the authority that signed the server's certificate as tls_ca_file.",
    "certificate_self_signed": "If the server is yours, put its certificate into a PEM file: tls_ca_file.",
    "certificate_not_yet_valid": "Check this machine's clock; else the server's operator must renew the certificate.",
    "certificate_expired": "The server's certificate has expired: its operator must renew it. Check this clock, too.",
    "certificate_wrong_host": "Set the account's host to a name that is in the server's certificate.",
    "starttls_missing": "The server offers no STARTTLS: use its TLS port with security tls, or another port.",
    "starttls_refused": "The server refuses STARTTLS: use its TLS port with security tls.",
    "starttls_injection": "Something between here and the server tampers with the connection. Use security tls.",
    "login_not_offered": "The server offers no login that the account's auth allows: check port, security and auth.",
    "password_missing": "Set the account's password, password_from or oauth; or auth none, if none is needed.",
    "plaintext_login_refused": "Use security starttls or tls; or set allow_plaintext_login if the way is safe.",
    "token_failed": "Check the account's OAuth settings; no access token could be had.",
    "protocol_error": "Check host and port: what answers there is no mail server, or breaks the protocol, which its "
    "operator can mend. MPU tries again by itself.",
    "secret_missing": "Provide what password_from names: mount the file or credential, or set the variable and "
    "restart. MPU looks again by itself.",
}

_AGAIN = re.compile(r"[.;] MPU (?:tries|looks) again by itself\b")


def in_a_check(remedy: str) -> str:
    """What to do after a check, which does not repeat itself as sending does."""
    if remedy.startswith("Nothing to do: MPU"):
        return "It may pass: check again in a while."
    return _AGAIN.sub(". Then check again", remedy)


class Silent(NamedTuple):
    """A banner that did not come, for people."""

    cause: str
    remedy: str


_WAITS_FOR_TLS = "The server says nothing. If the port is one for TLS from the start (465), it waits for that."
_SILENT_BEHIND_TLS = Silent(
    "TLS is up, but then the server says nothing, or a firewall keeps its words back.",
    "Check host, port and firewall; if they are right, ask the server's operator. MPU tries again by itself.",
)


def silent_banner(account: Account, code: str) -> Silent | None:
    """Of a failure with this code while the banner was awaited; None: it tells nothing more than elsewhere."""
    if account.security is Security.TLS:
        return _SILENT_BEHIND_TLS if code == "timeout" else None
    if account.port in TLS_PORTS and code in ("timeout", "closed"):
        return Silent(_WAITS_FOR_TLS, f"Set security to tls: port {account.port} is for TLS from the start.")
    if code == "timeout":
        remedy = "If the port is for TLS from the start, set security to tls; else check host, port and firewall."
        return Silent(_WAITS_FOR_TLS, remedy)
    return None
