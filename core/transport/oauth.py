"""Asking a token endpoint over HTTPS, once. What is asked and what answers mean is core/domain/oauth.py.

Nothing follows redirects, no proxy of the environment is used, certificates are verified by the system's authorities,
and no address is connected to that accounts may not connect to (core/domain/target.py): a name is resolved once, and
what was judged is what is connected to. An answer has a bound in time and size.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from core.domain import oauth as words
from core.domain.account import OAuth, OAuthGrant
from core.domain.clock import Clock
from core.domain.masking import repeats, without
from core.domain.oauth import Answer, Granted, Trouble
from core.domain.target import forbidden
from core.smtp.dialogue import TokenFailed

MAX_ANSWER_BYTES = 1 << 16
MAX_KEY_CHARACTERS = 1 << 16


@dataclass(frozen=True, slots=True)
class ServiceAccountKey:
    """What is needed of the key file that Google gives for a service account."""

    client_email: str
    key_id: str | None
    private_key: rsa.RSAPrivateKey


class KeyUnusable(ValueError):
    """The key file is none. Its words hold nothing of it."""


def read_service_account_key(text: str) -> ServiceAccountKey:
    """Read the JSON file's content. Raises KeyUnusable."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise KeyUnusable("is no JSON") from None
    email = content.get("client_email") if isinstance(content, dict) else None
    pem = content.get("private_key") if isinstance(content, dict) else None
    if not isinstance(email, str) or not isinstance(pem, str):
        raise KeyUnusable("has no client_email and private_key: give the whole file of a service account")
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable("holds no private key in private_key") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeyUnusable("holds a private key that is none of RSA")
    key_id = content.get("private_key_id")
    return ServiceAccountKey(email, key_id if isinstance(key_id, str) else None, key)


def sign(key: ServiceAccountKey, claims: Mapping[str, str | int]) -> str:
    """A JWT, RS256 (RFC 7515, RFC 7519)."""
    header = {"alg": "RS256", "typ": "JWT"} | ({"kid": key.key_id} if key.key_id is not None else {})
    signed = b".".join(_encoded(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    signature = key.private_key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    return b".".join((signed, _encoded(signature))).decode()


def _encoded(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


async def fetch(
    oauth: OAuth, username: str | None, *, clock: Clock, timeout_seconds: float, allow_private: bool = True
) -> Granted:
    """A new access token. Raises TokenFailed."""
    trouble = words.missing(oauth)
    if trouble is not None:
        raise failure_of(trouble)
    assertion = None
    if oauth.grant is OAuthGrant.SERVICE_ACCOUNT:
        assertion = await asyncio.to_thread(_assertion, oauth, username, clock.now())
    form = words.form_of(oauth, assertion)
    url = words.token_url(oauth)
    found = await post(url, form, clock=clock, timeout_seconds=timeout_seconds, allow_private=allow_private)
    if isinstance(found, Answer):
        secrets = (oauth.client_secret, oauth.refresh_token, assertion)
        result = words.read_answer(found, where=host_of(url), secrets=secrets)
    else:
        result = found
    if isinstance(result, Trouble):
        raise failure_of(result)
    return result


def failure_of(trouble: Trouble) -> TokenFailed:
    """As the SMTP client tells it on."""
    return TokenFailed(
        trouble.code,
        trouble.detail,
        remedy=trouble.remedy,
        pause_seconds=trouble.pause_seconds,
        passing=trouble.passing,
    )


def _assertion(oauth: OAuth, username: str | None, now: float) -> str:
    try:
        key = read_service_account_key(oauth.service_account_key or "")
    except KeyUnusable as error:
        raise TokenFailed(
            "token_denied",
            f"the service account's key {error}",
            remedy="Set oauth.service_account_key again."
            if oauth.service_account_key_from is None
            else "Google gives it as a JSON file: all of it is the secret.",
            pause_seconds=None,
            passing=False,
        ) from None
    return sign(key, words.claims_of(oauth, key.client_email, username, now))


async def post(
    url: str, form: Mapping[str, str], *, clock: Clock, timeout_seconds: float, allow_private: bool = True
) -> Answer | Trouble:
    """POST a form. A Trouble where nobody answered in time, or may be asked."""
    where = host_of(url)
    try:
        async with asyncio.timeout(timeout_seconds):
            target = httpx.URL(url)
            addresses = await _addresses(target)
            for address in addresses:
                reason = forbidden(address, allow_private=allow_private)
                if reason is not None:
                    return words.unreachable(where, f"{address} {reason}")
            verify = await asyncio.to_thread(ssl.create_default_context) if target.scheme == "https" else False
            limits = httpx.Timeout(timeout_seconds, connect=timeout_seconds / len(addresses))
            async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=limits) as http:
                response, body = await _ask(http, target, addresses, form)
    except TimeoutError:
        return words.unreachable(where, f"no answer within {timeout_seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        reason = without(str(error), form.values())
        if not reason or repeats(reason, form.values()):
            reason = type(error).__name__
        return words.unreachable(where, reason)
    retry_after = _retry_after(response.headers.get("Retry-After"), clock.now())
    return Answer(response.status_code, body, retry_after)


async def _addresses(url: httpx.URL) -> list[str]:
    """What the host resolves to, in the system's order."""
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(url.raw_host.decode(), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _ask(
    http: httpx.AsyncClient, url: httpx.URL, addresses: Sequence[str], form: Mapping[str, str]
) -> tuple[httpx.Response, bytes]:
    """From the first of the addresses that lets itself be connected to, as the host of the URL. Raises HTTPError."""
    headers = {"Accept": "application/json", "Host": url.netloc.decode()}
    name = {"sni_hostname": url.raw_host.decode()}  # the certificate is verified against it, too
    failures: list[str] = []
    for address in addresses:
        there = url.copy_with(host=address)
        try:
            async with http.stream("POST", there, data=dict(form), headers=headers, extensions=name) as response:
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        break
                return response, body
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent
            failures.append(str(error) or type(error).__name__)
    raise httpx.ConnectError("; ".join(dict.fromkeys(failures)))


def host_of(url: str) -> str:
    """The host, or host:port, for people; nothing of what a URL may hold besides."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port is not None else str(parts.hostname)


def _retry_after(value: str | None, now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds, or a date."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now, 0.0)
