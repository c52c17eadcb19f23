"""A token endpoint of our own, over real HTTP on loopback in the test's loop, with the faults that such have.

    async with TokenServer() as tokens:
        tokens.script = [Reply(429, {}, {"Retry-After": "7"}), Hang()]   # used up one a request; then it behaves
        tokens.clients["app"] = "its secret"
        tokens.refresh_tokens.add("first")
        ...
        assert tokens.forms[0]["grant_type"] == "refresh_token"

It knows clients (RFC 6749 section 2.3.1), refresh tokens that may change with each use, assertions signed with
`service_key` (RFC 7523), and people who log in with a device code (RFC 8628). `on_token` hears of each token given.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class Reply:
    """This, whatever was asked. `body`: an object is sent as JSON, octets as they are."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hang:
    """No answer, until the client goes away."""


def refusal(error: str, description: str = "", status: int = 400) -> Reply:
    """RFC 6749 section 5.2."""
    return Reply(status, {"error": error, "error_description": description})


PENDING = refusal("authorization_pending")
SLOW_DOWN = refusal("slow_down")
DENIED = refusal("access_denied", "the user said no")
REVOKED = refusal("invalid_grant", "Token has been expired or revoked.")
HTML = Reply(200, b"<html>Please log in to the hotel's network</html>", {"Content-Type": "text/html"})


@functools.cache
def rsa_key() -> rsa.RSAPrivateKey:
    """One for all tests: making it takes longer than they do."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def service_key(email: str = "robot@project.example") -> dict[str, str]:
    """As Google gives it, in JSON."""
    pem = rsa_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"type": "service_account", "client_email": email, "private_key_id": "k1", "private_key": pem.decode()}


class TokenServer:
    """See the top of the file."""

    def __init__(
        self,
        *,
        lifetime: Any = 3600,
        rotates: bool = False,
        token: str = "access-{}",
        refresh: str = "refresh-{}",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.lifetime = lifetime
        self.rotates = rotates
        self.clients: dict[str, str | None] = {"app": "its-secret"}  # None: a public client
        self.refresh_tokens: set[str] = {refresh.format(0)}
        self.script: list[Reply | Hang] = []
        self.device: list[Reply] = []  # answers while somebody logs in; then he has
        self.interval: int | None = 5
        self.hosts: list[str] = []  # whom it was asked as
        self.forms: list[dict[str, str]] = []  # of what was asked at /token
        self.claims: list[dict[str, Any]] = []  # of assertions
        self.given: list[str] = []
        self.on_token: Callable[[str], None] = lambda _: None
        self.asked = asyncio.Event()  # something was asked since it was cleared
        self.port = 0
        self._context = context
        self._token = token
        self._refresh_name = refresh
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}/token"

    @property
    def device_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/device"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, path, _ = line.split(" ")
            assert (method, headers["content-type"]) == ("POST", "application/x-www-form-urlencoded")
            self.hosts.append(headers["host"])
            reply = self._answer(path, dict(parse_qsl(body.decode(), strict_parsing=True)))
            self.asked.set()
            if isinstance(reply, Hang):
                await reader.read()
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
            shown = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"HTTP/1.1 {reply.status} Whatever\r\n{shown}Connection: close\r\n\r\n".encode() + content)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    def _answer(self, path: str, form: dict[str, str]) -> Reply | Hang:
        if path == "/device":
            return self._begin_device(form)
        self.forms.append(form)
        if self.script:
            return self.script.pop(0)
        grant = form.get("grant_type")
        if grant == JWT_BEARER:
            return self._assertion(form)
        known = form.get("client_id", "")
        if known not in self.clients or form.get("client_secret") != self.clients[known]:
            return refusal("invalid_client", f"AADSTS7000215: Invalid client secret {form.get('client_secret')}.", 401)
        if grant == DEVICE_CODE:
            return self.device.pop(0) if self.device else self._give(self._new_refresh_token())
        if grant == "client_credentials":
            return self._give()
        if grant == "refresh_token":
            return self._refresh(form["refresh_token"])
        return refusal("unsupported_grant_type")

    def _begin_device(self, form: dict[str, str]) -> Reply:
        answer = {
            "device_code": "d1",
            "user_code": "WDJB-MJHT",
            "verification_uri": "https://example.com/device",
            "expires_in": 900,
        }
        if self.interval is not None:
            answer["interval"] = self.interval
        known = form.get("client_id") in self.clients
        return Reply(200, answer) if known else refusal("invalid_client", "no such client", 401)

    def _refresh(self, present: str) -> Reply:
        if present not in self.refresh_tokens:
            return refusal("invalid_grant", f"AADSTS70000: the refresh token {present} was used or revoked.")
        if not self.rotates:
            return self._give()
        self.refresh_tokens.discard(present)
        return self._give(self._new_refresh_token())

    def _new_refresh_token(self) -> str:
        fresh = self._refresh_name.format(len(self.given) + 1)
        self.refresh_tokens.add(fresh)
        return fresh

    def _assertion(self, form: dict[str, str]) -> Reply:
        signed, _, signature = form["assertion"].rpartition(".")
        rsa_key().public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        assert header == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
        self.claims.append(claims)
        return self._give()

    def _give(self, refresh_token: str | None = None) -> Reply:
        token = self._token.format(len(self.given) + 1)
        self.given.append(token)
        self.on_token(token)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}
        return Reply(200, answer if refresh_token is None else {**answer, "refresh_token": refresh_token})


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
