"""The words of a check: probable causes by the codes of ConnectFailed, and what each missing extension costs."""

from __future__ import annotations

# code -> probable cause; a refused login has a table of its own (core/domain/login.py)
CAUSES = {
    "dns_failed": "The name is misspelt, or this machine's name service does not answer.",
    "target_forbidden": "The name leads to an address that accounts may not connect to.",
    "connect_failed": "Nothing listens there, or a firewall refuses the connection.",
    "connect_timeout": "Nothing answers: a firewall drops the packets, or the address is wrong.",
    "tls_failed": "The server speaks no TLS on this port, or none that is safe (TLS 1.2 at least).",
    "certificate_untrusted": "No authority that is trusted here signed the certificate: the server has one of its own, "
    "or somebody else answers in its place.",
    "certificate_self_signed": "The server has signed its certificate itself, so nobody vouches for it.",
    "certificate_expired": "The certificate has expired.",
    "certificate_not_yet_valid": "The certificate is not valid yet; most likely this machine's clock is wrong.",
    "certificate_wrong_host": "The certificate is for other names than the account's host.",
    "banner_refused": "The server turns this machine away: its address may be blocked, or the server is busy.",
    "ehlo_refused": "The server refuses the greeting, perhaps for the name in it.",
    "starttls_missing": "The server offers no STARTTLS on this port, or something in between takes it out.",
    "starttls_refused": "The server offers STARTTLS but can't do it now.",
    "starttls_injection": "Octets were pushed in between in the clear before TLS began.",
    "login_not_offered": "The server offers no login here that the account's settings allow.",
    "plaintext_login_refused": "The password would go over the network in the clear.",
    "token_failed": "No access token could be had.",
    "token_unreachable": "The token endpoint could not be reached, or did not answer in time.",
    "token_delayed": "The token endpoint can't answer now (it is overloaded, or limits how often it is asked).",
    "token_malformed": "What answered is no token endpoint, or a broken one: check token_url, tenant and proxies.",
    "token_denied": "The token endpoint refuses: the client, its secret, the refresh token or a permission.",
    "token_missing": "There is nothing yet to get a token with.",
    "password_missing": "There is a user name, but no password.",
    "secret_missing": "A secret that lies outside is not there, can't be read, or may not be named.",
    "protocol_error": "What answers there is no mail server, or breaks the protocol.",
    "timeout": "The server took too long to answer.",
    "closed": "The server closed the connection without a word.",
}
NO_CAUSE = "The server's words say what it is."
PORT_25 = " Clouds and access providers block port 25: use 587 or 465."

# keyword -> cost where it is missing, remedy
EXTENSIONS: dict[str, tuple[str, str]] = {
    "SIZE": (
        "A mail that is too large is refused only after it was sent whole.",
        "Set max_message_bytes of the directories to what the server takes: it is refused before, then.",
    ),
    "PIPELINING": (
        "Each command waits for the reply to the one before: several times slower, the more so the farther the server.",
        "More max_connections make up for it.",
    ),
    "CHUNKING": ("One round trip more for each mail.", "Leave it so: it costs little."),
    "8BITMIME": (
        "Mails with octets over 127 are re-encoded; signed ones can't be, and go to badmail.",
        "Have writers encode signed mails as quoted-printable or base64, or use another server for them.",
    ),
    "SMTPUTF8": (
        "Addresses with letters beyond ASCII before the @ can't be sent to or from.",
        "Where there are such addresses, give their mail another account.",
    ),
    "DSN": (
        "Delivery reports can't be asked for: NOTIFY, RET and ENVID of mails are left out.",
        "Where applications count on such reports, give them another account.",
    ),
}
