"""From a target to a connection that may send: DNS, TCP, TLS, banner, EHLO, STARTTLS, login. One try, no retries.

Every failure is a ConnectFailed that names the phase and a stable code. What must hold:
- STARTTLS missing, refused or tampered with is a failure; nothing goes on in clear (RFC 3207 section 6, RFC 8314).
- A login without TLS goes to loopback only, unless the target allows it; the password is never written before.
- One mechanism is tried, once: a provider counts every refused login. Only an access token that was refused (535) is
  replaced, and that once: it may have ended early.
- What the server said before TLS is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from core.domain.account import AuthMethod, Security
from core.domain.reply import Phase, Reply
from core.domain.target import forbidden
from core.smtp.auth import Login
from core.smtp.capabilities import choose_mechanism, login_wanted, parse_ehlo
from core.smtp.connection import Connection
from core.smtp.dialogue import Capabilities, ConnectFailed, FailureKind, Target
from core.smtp.errors import ConversationEnded, InjectedOctets, ProtocolError
from core.smtp.events import Command

_HELO_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Za-z:.]+\]")
_MAX_CHALLENGES = 4
LOGGED_IN = 235  # RFC 4954 section 6; there is no other 2yz reply to AUTH

# OpenSSL's X509_V_ERR codes; what is not named here is certificate_untrusted.
_CERTIFICATE_CODES = {
    9: "certificate_not_yet_valid",
    10: "certificate_expired",
    18: "certificate_self_signed",  # by itself; 19 is an authority of somebody's own
    62: "certificate_wrong_host",
    64: "certificate_wrong_host",
}
# of one address: another one of the host may serve. A login that was begun is not begun again.
_NOT_SERVING = frozenset({"connect_failed", "connect_timeout", "tls_failed", "closed", "timeout", "protocol_error"})
# what was on its way when time was up, by what was reached last
_NEXT = {Phase.CONNECT: Phase.BANNER, Phase.TLS: Phase.BANNER, Phase.BANNER: Phase.EHLO, Phase.STARTTLS: Phase.EHLO}
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]  # of getaddrinfo
_CODE_OF_KIND = {FailureKind.TIMEOUT: "timeout", FailureKind.PROTOCOL: "protocol_error"}


def tls_context(target: Target) -> ssl.SSLContext:
    """The client's context: verified, TLS 1.2 at least. Blocks (reads files). Raises ConnectFailed."""
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except (OSError, ssl.SSLError) as error:
        detail = f"the authorities can't be read from {target.ca_file or 'the system'}: {error}"
        raise ConnectFailed(Phase.TLS, "tls_failed", detail) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _unwatched(_phase: Phase, _detail: str) -> None:
    """Nobody wants to know how far it is."""


async def dial(
    target: Target,
    context: ssl.SSLContext | None,
    moved: Callable[[Connection], None],
    reached: Callable[[Phase, str], None] = _unwatched,
) -> Connection:
    """Open a connection and log in. `context` may be None where security is NONE. Raises ConnectFailed.

    `reached` is told each phase that is behind it, with a few words on what was found there.
    What `target.token` and `target.secret` raise, if it is not a ConnectFailed, becomes one with the code token_failed
    or secret_missing.
    """
    try:
        return await _dial(await _with_secret(target), context, moved, reached)
    except _TokenRefused:
        again = await _with_secret(target)
        return await _dial(again, context, moved, lambda p, d: reached(p, d) if p is Phase.AUTH else None)


async def _with_secret(target: Target) -> Target:
    """With the password that lies outside: where that or any other is missing, the server isn't bothered."""
    if not login_wanted(target):
        return target
    if target.secret is None:
        if target.token is None and target.password is None:
            raise ConnectFailed(Phase.AUTH, "password_missing", "there is a user name, but no password is set")
        return target
    try:
        return replace(target, password=await target.secret())
    except ConnectFailed:
        raise
    except Exception as error:
        raise ConnectFailed(Phase.AUTH, "secret_missing", f"no password: {error}") from error


class _TokenRefused(ConnectFailed):
    """With a fresh token, or the password that is there now, it may go."""


async def _dial(
    target: Target,
    context: ssl.SSLContext | None,
    moved: Callable[[Connection], None],
    reached: Callable[[Phase, str], None],
) -> Connection:
    """Through the first address that serves (RFC 5321 section 5.1). What a server says is the answer of all of them."""
    found = await _resolve(target, reached)
    loop = asyncio.get_running_loop()
    began, left = loop.time(), target.timeouts.connect_seconds
    failed = ConnectFailed(Phase.CONNECT, "connect_failed", f"{target.host} has no address")
    for index, address in enumerate(found):
        begun = loop.time()
        share = max(left, 0.01) / (len(found) - index)  # a dead first address leaves time for others
        try:
            sock = await _connect(target, address, share, reached)
            return await _prepared(target, sock, context, moved, reached)
        except ConnectFailed as error:
            failed, now = error, loop.time()
            if error.phase is Phase.CONNECT:
                left -= now - begun
            late = now - began > target.timeouts.login_seconds
            if late or error.phase is Phase.AUTH or error.code not in _NOT_SERVING:
                break
    raise failed


async def _prepared(
    target: Target,
    sock: socket.socket,
    context: ssl.SSLContext | None,
    moved: Callable[[Connection], None],
    reached: Callable[[Phase, str], None],
) -> Connection:
    connection = Connection(target, moved)
    behind = Phase.CONNECT

    def note(phase: Phase, detail: str) -> None:
        nonlocal behind
        behind = phase
        reached(phase, detail)

    try:
        async with asyncio.timeout(target.timeouts.login_seconds):
            await _prepare(connection, target, sock, context, note)
    except TimeoutError:
        connection.abort()
        detail = f"the login was not done in {target.timeouts.login_seconds:g} s; the last that went well: {behind}"
        raise ConnectFailed(_NEXT.get(behind, Phase.AUTH), "timeout", detail) from None
    except BaseException:
        connection.abort()
        if not connection.made and target.security is not Security.TLS:
            sock.close()
        raise
    if connection.tls is None:
        with contextlib.suppress(OSError):  # without it a reply may be missed, nothing worse
            connection.keep_spare(sock.dup())
    return connection


async def _resolve(target: Target, reached: Callable[[Phase, str], None]) -> Sequence[_Address]:
    """The addresses of the host, in the resolver's order."""
    loop = asyncio.get_running_loop()
    limit = target.timeouts.connect_seconds
    found: Sequence[_Address]
    try:
        async with asyncio.timeout(limit):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ConnectFailed(Phase.DNS, "dns_failed", f"{target.host} was not resolved in {limit:g} s") from None
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(Phase.DNS, "dns_failed", f"{target.host} can't be resolved: {error}") from error
    for *_, address in found:  # what a name resolves to is judged as a literal is when it is saved
        reason = forbidden(str(address[0]), allow_private=target.allow_private)
        if reason is not None:
            raise ConnectFailed(Phase.CONNECT, "target_forbidden", f"{target.host}: {address[0]} {reason}")
    reached(Phase.DNS, ", ".join(dict.fromkeys(str(address[0]) for *_, address in found)))
    return found


async def _connect(
    target: Target, found: _Address, limit: float, reached: Callable[[Phase, str], None]
) -> socket.socket:
    """A TCP connection to this address, within `limit` seconds."""
    family, kind, proto, _, address = found
    try:
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConnectFailed(Phase.CONNECT, "connect_failed", f"no socket for {address[0]}: {error}") from error
    try:
        sock.setblocking(False)
        async with asyncio.timeout(limit):
            await asyncio.get_running_loop().sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except TimeoutError:
        sock.close()
        detail = f"{address[0]} port {target.port} did not answer in {limit:.3g} s"
        raise ConnectFailed(Phase.CONNECT, "connect_timeout", detail) from None
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno) if error.errno else str(error)  # the loop's own words say less
        detail = f"{address[0]} port {target.port} can't be connected to: {why}"
        raise ConnectFailed(Phase.CONNECT, "connect_failed", detail) from error
    except BaseException:
        sock.close()
        raise
    reached(Phase.CONNECT, f"{address[0]} port {target.port}")
    return sock


async def _prepare(
    connection: Connection,
    target: Target,
    sock: socket.socket,
    context: ssl.SSLContext | None,
    reached: Callable[[Phase, str], None],
) -> None:
    loop = asyncio.get_running_loop()
    if target.security is Security.TLS:
        assert context is not None
        with _tls_failures(target):
            await loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=context,
                server_hostname=target.host,
                ssl_handshake_timeout=target.timeouts.connect_seconds,
            )
        connection.note_tls()
        reached(Phase.TLS, connection.tls or "")
    else:
        try:
            await loop.create_connection(lambda: connection, sock=sock)
        except OSError as error:
            sock.close()
            raise ConnectFailed(Phase.CONNECT, "connect_failed", str(error)) from error
    with _ended(Phase.BANNER):
        banner = await connection.answer(target.timeouts.banner_seconds)
    if banner.severity != 2:
        _refuse(connection, Phase.BANNER, "banner_refused", "the server refused the connection", banner)
    reached(Phase.BANNER, banner.text)
    name = _helo_name(target, sock)
    await _greet(connection, target, name)
    reached(Phase.EHLO, " ".join(sorted(connection.capabilities.extensions)))
    if target.security is Security.STARTTLS:
        assert context is not None
        await _start_tls(connection, target, context)
        reached(Phase.STARTTLS, connection.tls or "")
        await _greet(connection, target, name)
        reached(Phase.EHLO, " ".join(sorted(connection.capabilities.extensions)))  # those in clear don't count
    if login_wanted(target):
        method = await _log_in(connection, target, sock)
        reached(Phase.AUTH, f"{target.username} with {method.value.upper()}")
    if connection.protocol.closed:
        raise ConnectFailed(Phase.AUTH, "closed", "the server closed the connection")
    connection.protocol.open()


async def _greet(connection: Connection, target: Target, name: str) -> None:
    """EHLO; where it is refused, HELO, unless TLS or a login is still needed."""
    with _ended(Phase.EHLO):
        reply = await connection.command(Command.EHLO, f"EHLO {name}\r\n".encode())
        if reply.severity == 2:
            connection.protocol.capabilities = parse_ehlo(reply)
            return
        if reply.severity == 5 and target.security is not Security.STARTTLS and not login_wanted(target):
            reply = await connection.command(Command.HELO, f"HELO {name}\r\n".encode())
            if reply.severity == 2:
                connection.protocol.capabilities = Capabilities()
                return
    _refuse(connection, Phase.EHLO, "ehlo_refused", "the server refused the greeting", reply)


async def _start_tls(connection: Connection, target: Target, context: ssl.SSLContext) -> None:
    if not connection.capabilities.starttls:
        detail = "the server does not offer STARTTLS, and nothing is sent without it"
        _refuse(connection, Phase.STARTTLS, "starttls_missing", detail)
    try:
        with _ended(Phase.STARTTLS):
            reply = await connection.command(Command.STARTTLS, b"STARTTLS\r\n")
            if reply.severity != 2:
                _refuse(connection, Phase.STARTTLS, "starttls_refused", "the server refused STARTTLS", reply)
            with _tls_failures(target):
                await connection.start_tls(context)
    except ConnectFailed as failed:
        if isinstance(connection.protocol.error, InjectedOctets):
            detail = str(connection.protocol.error)
            raise ConnectFailed(Phase.STARTTLS, "starttls_injection", detail) from failed
        raise
    connection.protocol.tls_done()


async def _log_in(connection: Connection, target: Target, sock: socket.socket) -> AuthMethod:
    """The mechanism that was used. Raises ConnectFailed."""
    encrypted = connection.tls is not None
    if not encrypted and not target.allow_plaintext_login and not _is_loopback(sock):
        detail = "a login without TLS goes to this machine only, unless the account allows it"
        _refuse(connection, Phase.AUTH, "plaintext_login_refused", detail)
    method = choose_mechanism(target, connection.capabilities.auth, encrypted=encrypted)
    if method is None:
        offered = ", ".join(sorted(connection.capabilities.auth)) or "none"
        wanted = "login" if target.auth is AuthMethod.AUTO else target.auth.value.upper()
        detail = f"the server offers no {wanted} that can be used here (offered: {offered})"
        _refuse(connection, Phase.AUTH, "login_not_offered", detail)
    secret = await _secret(target, method)
    login = Login(method, target.username or "", secret)
    with _ended(Phase.AUTH, login.without_secret):
        reply = await connection.command(Command.AUTH, login.command())
        for _ in range(_MAX_CHALLENGES):
            if reply.code != 334:
                break
            try:
                line = login.answer(reply.text)
            except ProtocolError as error:
                raise ConnectFailed(Phase.AUTH, "protocol_error", str(error)) from error
            reply = await connection.command(Command.AUTH, line)
    reply = replace(reply, lines=tuple(map(login.without_secret, reply.lines)))
    tokens = target.token if method is AuthMethod.XOAUTH2 and target.token is not None else target.secret
    if reply.code == 535 and tokens is not None and await tokens.refused(secret):
        connection.say_goodbye()
        raise _TokenRefused(Phase.AUTH, "login_refused", f"the server did not take the login ({method.value})", reply)
    if reply.severity == 3:
        raise ConnectFailed(Phase.AUTH, "protocol_error", "the server asks on and on in the login", reply)
    if reply.severity == 2 and reply.code != LOGGED_IN:
        detail = f"the server answered {reply.code} to the login, which is no success: that is {LOGGED_IN} (RFC 4954)"
        _refuse(connection, Phase.AUTH, "protocol_error", detail, reply)
    if reply.severity != 2:
        code = "login_refused" if reply.severity == 5 else "login_deferred"
        _refuse(connection, Phase.AUTH, code, f"the server did not take the login ({method.value})", reply)
    if tokens is not None:
        tokens.accepted(secret)
    return method


async def _secret(target: Target, method: AuthMethod) -> str:
    if method is not AuthMethod.XOAUTH2:
        return target.password or ""
    if target.token is None:
        return target.password or ""  # a token set by hand
    try:
        return await target.token()
    except ConnectFailed:
        raise
    except Exception as error:
        raise ConnectFailed(Phase.AUTH, "token_failed", f"no access token could be had: {error}") from error


def _refuse(connection: Connection, phase: Phase, code: str, detail: str, reply: Reply | None = None) -> NoReturn:
    """Leave politely, without waiting, and raise."""
    if not connection.protocol.closed:
        connection.say_goodbye()
    raise ConnectFailed(phase, code, detail, reply)


@contextlib.contextmanager
def _ended(phase: Phase, shown: Callable[[str], str] = str) -> Iterator[None]:
    try:
        yield
    except ConversationEnded as ended:
        raise ConnectFailed(phase, _CODE_OF_KIND.get(ended.kind, "closed"), shown(ended.detail)) from None


@contextlib.contextmanager
def _tls_failures(target: Target) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        code = _CERTIFICATE_CODES.get(error.verify_code, "certificate_untrusted")
        detail = f"the certificate of {target.host} can't be trusted: {error.verify_message}"
        raise ConnectFailed(Phase.TLS, code, detail) from error
    except (OSError, ssl.SSLError) as error:
        detail = f"no TLS with {target.host}: {error}"
        raise ConnectFailed(Phase.TLS, "tls_failed", detail) from error


def _is_loopback(sock: socket.socket) -> bool:
    try:
        return ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]).is_loopback
    except (OSError, ValueError):
        return False


def _helo_name(target: Target, sock: socket.socket) -> str:
    """RFC 5321 section 4.1.4: the name of this host, or its address literal."""
    name = target.helo_name or socket.gethostname()
    if _HELO_NAME.fullmatch(name) is not None and (target.helo_name or "." in name):
        return name
    try:
        address = sock.getsockname()[0].partition("%")[0]
    except OSError:
        return "localhost"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
