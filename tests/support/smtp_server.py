"""A scripted SMTP server on a real socket, for tests: it does what servers do, and what they should not.

    async with SmtpServer() as server:
        server.script.rcpt["bad@example.org"] = "550 5.1.1 no such user"
        server.script.dot = [Hang(), "250 2.0.0 taken"]
        ...
        assert server.messages[0].sender == "a@example.org"

What answers a command is an action: a reply (str, lines divided by "\\n"), Raw octets, Hang, Silent, Close, Late,
Twice, Trickle, Seq, a function of (session, argument) that gives one of these, or a list that is used up one action a
command (then the default holds). `server.scripts[n]` is the script of the n-th connection (from 0), where it differs.

`server.faults` (tests/support/smtp_faults.py) makes faults at random, by a seed: they come before what the script says.

`server.messages` is the ledger: what the server took responsibility for, each body as it was before dot-stuffing. In a
process of its own: python -m tests.support.smtp_server --port 0 --ledger FILE (prints the port, a JSON line a message).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, cast

import trustme

# --- actions ----------------------------------------------------------------------------------------------------------


@dataclass
class Raw:
    """These octets, whatever they are."""

    octets: bytes


@dataclass
class Hang:
    """No answer, and nothing is read any more. At the end of the content, `take` enters the message in the ledger."""

    take: bool = False


@dataclass
class Silent:
    """No answer to this one, but the conversation goes on."""


@dataclass
class Close:
    """Say `reply` (or a part of a reply, with `raw`) and close; `reset` closes with RST; `take` as for Hang."""

    reply: str = ""
    raw: bytes = b""
    reset: bool = False
    take: bool = False


@dataclass
class Late:
    """The reply, after a while."""

    seconds: float
    reply: str


@dataclass
class Twice:
    """The reply, two times."""

    reply: str


@dataclass
class Trickle:
    """The reply, octet by octet with a pause before each."""

    reply: str
    seconds: float


@dataclass
class Seq:
    """Several actions at one command, in order."""

    actions: list[Any]


Action = (
    str
    | Raw
    | Hang
    | Silent
    | Close
    | Late
    | Twice
    | Trickle
    | Seq
    | Callable[["Session", str], Any]
    | list[Any]
    | None
)

DEFAULT_EXTENSIONS = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
    "ENHANCEDSTATUSCODES",
)


@dataclass
class Script:
    """What the server does. None is the proper answer."""

    extensions: Iterable[str] = DEFAULT_EXTENSIONS  # add "CHUNKING"; STARTTLS and AUTH follow from the server's set-up
    hide: set[str] = field(default_factory=set)  # keywords not offered
    banner: Action = None
    ehlo: Action = None
    helo: Action = None
    starttls: Action = None
    starttls_inject: bytes = b""  # octets behind the 220, in the same write
    auth: Action = None
    mail: dict[str, Action] = field(default_factory=dict)  # by sender; "*" is any
    rcpt: dict[str, Action] = field(default_factory=dict)  # by recipient; "*" is any
    data: Action = None
    data_always: bool = False  # 354 even without a recipient
    body: dict[int, Action] = field(default_factory=dict)  # after so many octets of content
    dot: Action = None  # the final dot or BDAT LAST
    bdat: Action = None  # a BDAT that is not the last
    rset: Action = None
    noop: Action = None
    quit: Action = None
    at_accept: Action = None  # before the banner: Close(), Hang()
    close_after: int | None = None  # after so many octets of the client's, wherever that is: nothing behind is heard
    read_pause_seconds: float = 0  # reads content only so often, a little at a time
    round_trip_seconds: float = 0  # each burst of replies is held back so long


@dataclass(slots=True)
class Taken:
    """A message that the server took responsibility for."""

    sender: str
    params: str
    recipients: list[tuple[str, str]]  # mailbox, parameters
    body: bytes
    size: int
    sha256: str
    connection: int
    user: str | None = None

    @property
    def to(self) -> list[str]:
        return [mailbox for mailbox, _ in self.recipients]


@dataclass(slots=True)
class LoginTry:
    mechanism: str
    user: str
    ok: bool
    encrypted: bool


_PATH = re.compile(r"(?:FROM|TO):\s*<((?:\"(?:[^\"\\]|\\.)*\"|[^>\"])*)>\s*(.*)", re.IGNORECASE)
_MESSAGE_ID = re.compile(rb"^message-id:\s*(\S+)", re.IGNORECASE | re.MULTILINE)
_MAX_LINE = 16384
STOP_SECONDS = 10.0


class Session(asyncio.Protocol):
    """One connection. The state is that of RFC 5321; the script decides what is said."""

    def __init__(self, server: SmtpServer) -> None:
        self.server = server
        self.number = server.accepted
        server.accepted += 1
        self.script = server.scripts.get(self.number, server.script)
        self.transport: asyncio.Transport | None = None
        self.encrypted = server.implicit_tls
        self.user: str | None = None
        self.esmtp = False
        self.commands: list[str] = []
        self.reads = 0  # how often octets came in: an upper bound of the round trips
        self.sender: str | None = None
        self.params = ""
        self.recipients: list[tuple[str, str]] = []
        self._buffer = b""
        self._mode = self._command_mode
        self._stopped = False  # hanging, waiting, or in a handshake
        self._content: list[bytes] = []
        self._content_all = 0
        self._chunk_left = 0
        self._chunk_last = False
        self._chunk_valid = False
        self._auth: Callable[[str], None] | None = None
        self._out: list[bytes] = []
        self._heard = 0

    # --- the transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self.server.sessions.append(self)
        self.server.live.add(self)
        if self.server.stopped:  # accepted just before
            self._stopped = True
            self.transport.abort()
            return
        action = self._fault("accept") or self.script.at_accept
        if action is not None:
            self.act(action, "")
        if not self._stopped:
            self.act(self._next("banner", "220 server.test ESMTP"), "")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopped = True
        self.server.live.discard(self)
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        self._heard += len(data)
        limit = self.script.close_after
        if limit is not None and self._heard > limit:
            data = data[: len(data) - (self._heard - limit)]
        self._buffer = self._buffer + data if self._buffer else data
        if self.script.read_pause_seconds and self._mode is not self._command_mode and self.transport is not None:
            transport = self.transport
            transport.pause_reading()
            asyncio.get_running_loop().call_later(self.script.read_pause_seconds, self._resume, transport)
        self._run()

    def _resume(self, transport: asyncio.Transport) -> None:
        if not transport.is_closing():
            transport.resume_reading()

    def _run(self) -> None:
        while self._buffer and not self._stopped and self._mode():
            pass
        self._flush()
        if self.script.close_after is not None and self._heard >= self.script.close_after and not self._stopped:
            self.act(Close(), "")

    def _flush(self) -> None:
        if not self._out:
            return
        octets = b"".join(self._out)
        self._out.clear()
        if self.transport is None:
            return
        if self.script.round_trip_seconds:
            asyncio.get_running_loop().call_later(self.script.round_trip_seconds, self._write, octets)
        else:
            self.transport.write(octets)

    def _write(self, octets: bytes) -> None:
        if self.transport is not None:
            self.transport.write(octets)

    # --- what the script says -----------------------------------------------------------------------------------------

    def _next(self, name: str, default: str) -> Any:
        return self._fault(name) or self._choose(getattr(self.script, name), default)

    def _fault(self, place: str, mailbox: str = "") -> Any:
        return self.server.faults.at(self.number, place, mailbox) if self.server.faults is not None else None

    def _choose(self, action: Action, default: str) -> Any:
        if isinstance(action, list):
            action = action.pop(0) if action else None
        return default if action is None else action

    def act(self, action: Any, argument: str) -> int:
        """Do it; the code of the reply that was said, 0 if none was."""
        if callable(action):
            action = action(self, argument)
        if isinstance(action, str):
            self._say(action)
            return int(action[:3]) if action[:3].isdigit() else 0
        if isinstance(action, Raw):
            self._out.append(action.octets)
            return int(action.octets[:3]) if action.octets[:3].isdigit() else 0
        if isinstance(action, Twice):
            self._say(action.reply)
            self._say(action.reply)
            return int(action.reply[:3])
        if isinstance(action, Seq):
            code = 0
            for one in action.actions:  # the first reply is the verdict
                said = self.act(one, argument)
                code = code or said
            return code
        self._do(action)
        return int(action.reply[:3]) if isinstance(action, Late | Trickle) else 0

    def _do(self, action: Any) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(action, Hang):
            self._stopped = True
        elif isinstance(action, Close):
            if action.reply:
                self._say(action.reply)
            if action.raw:
                self._out.append(action.raw)
            self._flush()
            self._stopped = True
            if self.transport is not None:
                if action.reset:
                    self.transport.abort()
                else:
                    self.transport.close()
        elif isinstance(action, Late):
            self._stopped = True
            loop.call_later(action.seconds, self._go_on, _wire(action.reply))
        elif isinstance(action, Trickle):
            self._stopped = True
            self._trickle(_wire(action.reply), action.seconds)

    def _go_on(self, octets: bytes) -> None:
        self._out.append(octets)
        self._stopped = False
        self._run()

    def _trickle(self, octets: bytes, seconds: float) -> None:
        if self.transport is None:
            return
        if len(octets) == 1:
            self._go_on(octets)
            return
        self.transport.write(octets[:1])
        asyncio.get_running_loop().call_later(seconds, self._trickle, octets[1:], seconds)

    def _say(self, reply: str) -> None:
        self._out.append(_wire(reply))

    # --- commands -----------------------------------------------------------------------------------------------------

    def _command_mode(self) -> bool:
        line, found, rest = self._buffer.partition(b"\n")
        if not found:
            if len(self._buffer) > _MAX_LINE:
                self.act(Close("500 5.5.2 line too long"), "")
            return False
        self._buffer = rest
        text = line.removesuffix(b"\r").decode("utf-8", "replace")
        if self._auth is not None:
            answer, self._auth = self._auth, None
            answer(text)
            return True
        if self.server.keep_commands:
            self.commands.append(text)
        verb, _, argument = text.partition(" ")
        handler = _HANDLERS.get(verb.upper())
        if handler is None:
            self._say("500 5.5.2 unknown command")
        else:
            handler(self, argument)
        return True

    def _ehlo(self, argument: str) -> None:
        self._forget()
        self.esmtp = True
        words = [word for word in self.script.extensions if word.split()[0] not in self.script.hide]
        if self.server.context is not None and not self.encrypted and "STARTTLS" not in self.script.hide:
            words.append("STARTTLS")
        if self.server.mechanisms and (self.encrypted or self.server.auth_in_clear):
            words.append("AUTH " + " ".join(self.server.mechanisms))
        self.act(self._next("ehlo", "250 " + "\n".join(["server.test", *words])), argument)

    def _helo(self, argument: str) -> None:
        self._forget()
        self.act(self._next("helo", "250 server.test"), argument)

    def _starttls(self, argument: str) -> None:
        action = self._next("starttls", "220 2.0.0 go ahead")
        if action != "220 2.0.0 go ahead":
            self.act(action, argument)
            return
        self._say("220 2.0.0 go ahead")
        if self.script.starttls_inject:
            self._out.append(self.script.starttls_inject)
        self._flush()
        self._stopped = True
        self._buffer = b""
        task = asyncio.get_running_loop().create_task(self._handshake())
        self.server.tasks.add(task)
        task.add_done_callback(self.server.tasks.discard)

    async def _handshake(self) -> None:
        assert self.transport is not None
        assert self.server.context is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.transport, self, self.server.context, server_side=True
            )
        except (OSError, ssl.SSLError):
            if self.transport is not None:
                self.transport.abort()
            self.server.live.discard(self)
            return
        except asyncio.CancelledError:  # cut off in a handshake, nobody is told that the connection is lost
            self.server.live.discard(self)
            raise
        self.transport = transport
        self.encrypted = True
        self._stopped = False
        self._forget()
        self._run()

    def _mail(self, argument: str) -> None:
        match = _PATH.fullmatch(argument)
        if match is None:
            self._say("501 5.5.4 syntax: MAIL FROM:<address>")
        elif self.server.require_auth and self.user is None:
            self._say("530 5.7.0 authentication required")
        elif self.sender is not None:
            self._say("503 5.5.1 nested MAIL command")
        else:
            actions = self.script.mail
            action = actions[match[1]] if match[1] in actions else actions.get("*")
            action = self._fault("mail", match[1]) or self._choose(action, "250 2.1.0 ok")
            if self.act(action, match[1]) // 100 == 2:
                self.sender, self.params = match[1], match[2]

    def _rcpt(self, argument: str) -> None:
        match = _PATH.fullmatch(argument)
        if match is None:
            self._say("501 5.5.4 syntax: RCPT TO:<address>")
        elif self.sender is None:
            self._say("503 5.5.1 need MAIL command")
        else:
            actions = self.script.rcpt
            action = actions[match[1]] if match[1] in actions else actions.get("*")
            action = self._fault("rcpt", match[1]) or self._choose(action, "250 2.1.5 ok")
            if self.act(action, match[1]) // 100 == 2:
                self.recipients.append((match[1], match[2]))

    def _data(self, argument: str) -> None:
        default = "354 go ahead"
        if self.sender is None and not self.script.data_always:
            default = "503 5.5.1 need MAIL command"
        elif not self.recipients and not self.script.data_always:
            default = "554 5.5.1 no valid recipients"
        if self.act(self._next("data", default), argument) == 354:
            self._mode = self._data_mode
            self._content = []
            self._buffer = b"\r\n" + self._buffer  # so that a dot on the first line is found as any other
            self._content_all = -2

    def _bdat(self, argument: str) -> None:
        size, _, last = argument.partition(" ")
        if not size.isdigit():
            self.act(Close("501 5.5.4 syntax: BDAT size [LAST]"), "")
            return
        self._chunk_left = int(size)
        self._chunk_last = last.strip().upper() == "LAST"
        self._chunk_valid = self.sender is not None and bool(self.recipients)
        self._mode = self._bdat_mode
        if not self._buffer and self._chunk_left == 0:
            self._chunk_done()

    def _rset(self, argument: str) -> None:
        self._forget()
        self.act(self._next("rset", "250 2.0.0 ok"), argument)

    def _noop(self, argument: str) -> None:
        self.act(self._next("noop", "250 2.0.0 ok"), argument)

    def _quit(self, argument: str) -> None:
        action = self._next("quit", "")
        self.act(action or Close("221 2.0.0 bye"), argument)

    def _forget(self) -> None:
        self.sender = None
        self.params = ""
        self.recipients = []
        self._content = []
        self._content_all = 0

    # --- content ------------------------------------------------------------------------------------------------------

    def _in_body(self, more: int) -> bool:
        """An action in the middle of the content; True: it stops the reading of it."""
        before = self._content_all
        self._content_all += more
        for at in sorted(self.script.body):
            if before < at <= self._content_all:
                self.act(self._choose(self.script.body[at], ""), "")
        return self._stopped

    def _data_mode(self) -> bool:
        buffer = self._buffer
        end = buffer.find(b"\r\n.\r\n")
        if end < 0:
            keep = 4  # the end may be split
            if len(buffer) > keep:
                cut = len(buffer) - keep
                self._content.append(buffer[:cut])
                self._buffer = buffer[cut:]
                self._in_body(cut)
            return False
        if self.script.body and self._in_body(end + 2):
            return False
        self._content.append(buffer[: end + 2])
        self._buffer = buffer[end + 5 :]
        self._mode = self._command_mode
        body = b"".join(self._content)
        if b"\r\n.." in body:
            body = body.replace(b"\r\n..", b"\r\n.")
        self._finish(body[2:])
        return True

    def _bdat_mode(self) -> bool:
        part = self._buffer[: self._chunk_left]
        self._buffer = self._buffer[len(part) :]
        self._chunk_left -= len(part)
        self._content.append(part)
        if self.script.body and self._in_body(len(part)):
            return False
        if self._chunk_left == 0:
            self._chunk_done()
        return True

    def _chunk_done(self) -> None:
        self._mode = self._command_mode
        if not self._chunk_valid:
            self._content = []
            no_mail = "503 5.5.1 need MAIL command"
            self._say("554 5.5.1 no valid recipients" if self.sender is not None else no_mail)
        elif self._chunk_last:
            self._finish(b"".join(self._content))
        elif self.act(self._next("bdat", "250 2.0.0 chunk taken"), "") // 100 in (4, 5):
            self._forget()

    def _finish(self, body: bytes) -> None:
        """The end of the content: take the message or not."""
        action = self._next("dot", "250 2.0.0 taken")
        taken = self.act(action, "") // 100 == 2 or getattr(action, "take", False)
        if taken and self.recipients:
            self.server.take(
                Taken(
                    self.sender or "",
                    self.params,
                    self.recipients,
                    body if self.server.keep_bodies else b"",
                    len(body),
                    hashlib.sha256(body).hexdigest(),
                    self.number,
                    self.user,
                ),
                body,
            )
        self._forget()

    # --- login --------------------------------------------------------------------------------------------------------

    def _auth_command(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        mechanism = mechanism.upper()
        action = self._next("auth", "")
        if action:
            self.server.logins.append(LoginTry(mechanism, "", False, self.encrypted))
            self.act(action, argument)
            return
        if mechanism not in self.server.mechanisms:
            self._say("504 5.5.4 mechanism not offered")
        elif mechanism == "PLAIN":
            self._ask(initial, "", self._plain)
        elif mechanism == "XOAUTH2":
            self._ask(initial, "", self._xoauth2)
        elif mechanism == "LOGIN":
            self._ask(initial, "VXNlcm5hbWU6", self._login_user)
        elif mechanism == "CRAM-MD5":
            nonce = "<1896.697170952@server.test>"
            self._ask("", base64.b64encode(nonce.encode()).decode(), lambda answer: self._cram(nonce, answer))

    def _ask(self, initial: str, challenge: str, then: Callable[[str], None]) -> None:
        if initial:
            then(initial)
        else:
            self._say(f"334 {challenge}")
            self._auth = then

    def _plain(self, answer: str) -> None:
        _, user, password = _decoded(answer).split("\0")
        self._logged_in("PLAIN", user, self.server.credentials.get(user) == password)

    def _login_user(self, answer: str) -> None:
        user = _decoded(answer)
        self._ask("", "UGFzc3dvcmQ6", lambda password: self._login_password(user, password))

    def _login_password(self, user: str, answer: str) -> None:
        self._logged_in("LOGIN", user, self.server.credentials.get(user) == _decoded(answer))

    def _cram(self, nonce: str, answer: str) -> None:
        user, _, digest = _decoded(answer).rpartition(" ")
        password = self.server.credentials.get(user, "")
        expected = hmac.new(password.encode(), nonce.encode(), "md5").hexdigest()
        self._logged_in("CRAM-MD5", user, bool(password) and digest == expected)

    def _xoauth2(self, answer: str) -> None:
        match = re.fullmatch("user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01", _decoded(answer))
        user = match[1] if match else ""
        if match is not None and self.server.tokens.get(user) == match[2]:
            self._logged_in("XOAUTH2", user, True)
            return
        self._ask("", "eyJzdGF0dXMiOiI0MDAifQ==", lambda answer: self._xoauth2_refused(user, answer))

    def _xoauth2_refused(self, user: str, answer: str) -> None:
        if answer:
            self._say("501 5.5.2 an empty line is wanted")
        else:
            self._logged_in("XOAUTH2", user, False)

    def _logged_in(self, mechanism: str, user: str, ok: bool) -> None:
        self.server.logins.append(LoginTry(mechanism, user, ok, self.encrypted))
        if ok:
            self.user = user
        self._say("235 2.7.0 welcome" if ok else "535 5.7.8 authentication failed")


_HANDLERS: dict[str, Callable[[Session, str], None]] = {
    "EHLO": Session._ehlo,
    "HELO": Session._helo,
    "STARTTLS": Session._starttls,
    "AUTH": Session._auth_command,
    "MAIL": Session._mail,
    "RCPT": Session._rcpt,
    "DATA": Session._data,
    "BDAT": Session._bdat,
    "RSET": Session._rset,
    "NOOP": Session._noop,
    "QUIT": Session._quit,
}


def _wire(reply: str) -> bytes:
    """ "250 a\\nb" -> "250-a", "250 b"."""
    if "\n" not in reply:
        return reply.encode() + b"\r\n"
    code, first, *rest = reply[:3], *reply[4:].split("\n")
    lines = [first, *rest]
    return "".join(f"{code}{'-' if i < len(lines) - 1 else ' '}{line}\r\n" for i, line in enumerate(lines)).encode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


# --- the server -------------------------------------------------------------------------------------------------------


def certificate(*names: str, authority: trustme.CA | None = None, **options: Any) -> tuple[trustme.CA, ssl.SSLContext]:
    """An authority, and a server's context with a certificate of it for these names."""
    authority = authority or trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1")), **options).configure_cert(context)
    return authority, context


class Faults(Protocol):
    """What goes wrong where, beside the script."""

    def at(self, connection: int, place: str, mailbox: str) -> Action:
        """What answers at a place: accept, banner, ehlo, mail, rcpt, data, bdat, dot, rset, ...; None: as scripted."""
        ...


class SmtpServer:
    """See the top of the file. `context` makes STARTTLS possible; with `implicit_tls` TLS comes first."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        context: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        credentials: dict[str, str] | None = None,
        tokens: Mapping[str, object] | None = None,
        mechanisms: Iterable[str] = (),
        auth_in_clear: bool = True,
        require_auth: bool = False,
        keep_bodies: bool = True,
        keep_messages: bool = True,
        keep_commands: bool = True,
        ledger: str | None = None,
        faults: Faults | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.script = script or Script()
        self.scripts: dict[int, Script] = {}
        self.context = context
        self.implicit_tls = implicit_tls
        self.credentials = credentials or {}
        self.tokens: dict[str, object] = dict(tokens or {})  # what equals a user's good tokens
        self.mechanisms = tuple(mechanisms)
        self.auth_in_clear = auth_in_clear
        self.require_auth = require_auth
        self.keep_bodies = keep_bodies
        self.keep_messages = keep_messages
        self.keep_commands = keep_commands
        self.faults = faults
        self.host = host
        self.port = port
        self.messages: list[Taken] = []
        self.taken = 0
        self.logins: list[LoginTry] = []
        self.sessions: list[Session] = []
        self.live: set[Session] = set()
        self.accepted = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if ledger else None
        self._server: asyncio.Server | None = None
        self.stopped = False

    def take(self, message: Taken, body: bytes) -> None:
        """Enter it in the ledger, before the reply leaves."""
        self.taken += 1
        if self.keep_messages:
            self.messages.append(message)
        if self._ledger is not None:
            found = _MESSAGE_ID.search(body, 0, 8192)
            line = {
                "sender": message.sender,
                "params": message.params,
                "recipients": message.recipients,
                "size": message.size,
                "sha256": message.sha256,
                "connection": message.connection,
                "user": message.user,
                "message_id": found[1].decode("ascii", "replace") if found else None,
            }
            os.write(self._ledger, json.dumps(line).encode() + b"\n")

    @property
    def commands(self) -> list[str]:
        """The commands of all connections, one connection after the other."""
        return [command for session in self.sessions for command in session.commands]

    @property
    def reads(self) -> int:
        return sum(session.reads for session in self.sessions)

    async def start(self) -> None:
        self.stopped = False
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Session(self),
            self.host,
            self.port,
            ssl=self.context if self.implicit_tls else None,
            backlog=512,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop all connections."""
        self.stopped = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for _ in range(5):  # what was accepted is made known by then
            self.drop()
            await asyncio.sleep(0)
        async with asyncio.timeout(STOP_SECONDS):
            while self.live or self.tasks:
                self.drop()
                await asyncio.sleep(0)
                for task in self.tasks:
                    task.cancel()
        if self._ledger is not None:
            os.close(self._ledger)
            self._ledger = None

    def drop(self, *, reset: bool = True) -> None:
        """Close all connections from this side."""
        for session in list(self.live):
            if session.transport is None:
                self.live.discard(session)
            elif reset:
                session.transport.abort()
            else:
                session.transport.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


class ThreadedSmtpServer:
    """The same server on a loop of its own thread, for callers without one."""

    def __init__(self, **options: Any) -> None:
        self.server = SmtpServer(**options)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with self.server:
            self._started.set()
            await self._stop.wait()

    def __enter__(self) -> SmtpServer:
        self._thread.start()
        assert self._started.wait(10)
        return self.server

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


async def _serve(options: argparse.Namespace) -> None:
    extensions = [*DEFAULT_EXTENSIONS, "CHUNKING"] if options.chunking else list(DEFAULT_EXTENSIONS)
    script = Script(extensions=extensions, round_trip_seconds=options.round_trip_seconds)
    server = SmtpServer(
        script,
        port=options.port,
        ledger=options.ledger,
        keep_bodies=False,
        keep_messages=False,
        keep_commands=False,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        print(server.port, flush=True)  # noqa: T201  # what the caller reads
        await stop.wait()
        print(json.dumps({"taken": server.taken, "connections": server.accepted}), flush=True)  # noqa: T201  # as above


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.smtp_server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger", default=None, help="append one JSON line a message")
    parser.add_argument("--chunking", action="store_true", help="offer CHUNKING")
    parser.add_argument("--round-trip-seconds", type=float, default=0, help="hold each burst of replies back so long")
    options = parser.parse_args(arguments)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(_serve(options))
        return
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main(sys.argv[1:])
