"""The HTTP interface as the command line uses it.

Where: --url, MPU_URL, else MPU_HOST and MPU_PORT, else http://127.0.0.1:8025. With which key: --key-file, MPU_API_KEY,
MPU_API_KEY_FILE, else the `api-key` file that the service wrote into its data directory (./var or /var/lib/mpu), if it
can be read. The key is never an option: it would be seen in the list of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

import httpx
import typer

from api.cli.output import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, complain
from core.settings import DEFAULT_DATA_DIR, DEMO_DATA_DIR, KEY_RULE, is_key

PAGE = 500
MAX_KEY_FILE_BYTES = 4096  # more is no key file, whatever it is
Url = Annotated[str | None, typer.Option("--url", envvar="MPU_URL", help="Where the service is.", show_envvar=True)]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", envvar="MPU_API_KEY_FILE", help="File with the API key.", show_envvar=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print what the service answered.")]


class Failed(typer.Exit):
    """The call failed and that was said."""


def base_url(url: str | None, environ: Mapping[str, str] | None = None) -> str:
    """Where the service answers, without a slash at the end. Raises Failed for what is no URL, having said that."""
    environ = os.environ if environ is None else environ
    where = _base_url(url, environ)
    try:
        httpx.URL(where)
    except httpx.InvalidURL as error:
        complain(f"{where} is no URL: {error}", "Correct --url or MPU_URL, MPU_HOST and MPU_PORT.")
        raise Failed(EXIT_USAGE) from None
    return where


def _base_url(url: str | None, environ: Mapping[str, str]) -> str:
    if url:
        return (url if "://" in url else f"http://{url}").rstrip("/")
    host = environ.get("MPU_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where it listens, not what we open
    host = f"[{host}]" if ":" in host else host
    kind = "https" if environ.get("MPU_TLS_CERTIFICATE_FILE") else "http"
    return f"{kind}://{host}:{environ.get('MPU_PORT') or 8025}{environ.get('MPU_ROOT_PATH', '')}"


def find_key(key_file: Path | None, environ: Mapping[str, str] | None = None) -> str:
    """The key. Says what is wrong, but never what was read, and raises Failed where there is none."""
    environ = os.environ if environ is None else environ
    if key_file is None and environ.get("MPU_API_KEY"):
        key = environ["MPU_API_KEY"].strip()
        if is_key(key):
            return key
        complain(f"MPU_API_KEY is not {KEY_RULE}", "Set it anew, or name a file with the key: --key-file.")
        raise Failed(EXIT_FAILED)
    data_dirs = [Path(environ["MPU_DATA_DIR"])] if environ.get("MPU_DATA_DIR") else [DEMO_DATA_DIR, DEFAULT_DATA_DIR]
    candidates = [key_file] if key_file is not None else [data_dir / "api-key" for data_dir in data_dirs]
    reasons = []
    for path in candidates:
        try:
            with path.open("rb") as file:
                key = file.read(MAX_KEY_FILE_BYTES + 1).strip().decode("latin-1")
        except OSError as error:
            reasons.append(f"{path}: {error.strerror}")
            continue
        if is_key(key):
            return key
        reasons.append(f"{path} holds no API key, which is {KEY_RULE}" if key else f"{path}: empty")
    complain(f"no API key ({'; '.join(reasons)})", "Set MPU_API_KEY, or name a file with the key: --key-file.")
    raise Failed(EXIT_FAILED)


def segment(text: str) -> str:
    """A name or an id as one part of a path: quoting leaves dots as they are, and servers decode a quoted slash.

    Raises Failed for what can be none, having said that.
    """
    if not text or "/" in text or not text.strip("."):
        complain(f"{text!r} is neither a name nor an id", "They hold no slash, and more than dots.")
        raise Failed(EXIT_USAGE)
    return quote(text, safe="")


class Client:
    """Calls that answer with JSON or end the command, having said why."""

    def __init__(self, url: str | None, key_file: Path | None, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = base_url(url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {find_key(key_file)}", "Accept": "application/json"},
            timeout=httpx.Timeout(30, read=120),
            transport=transport,
            trust_env=False,  # a proxy of the environment has no business between us and our own service
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: object = None, **query: object) -> Any:
        return self.call("POST", path, body=body, query=query)

    def call(self, method: str, path: str, *, body: object = None, query: Mapping[str, object] | None = None) -> Any:
        """Raises Failed (EXIT_UNREACHABLE, EXIT_FAILED) after saying what the service said."""
        shown = {name: _query_value(value) for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, params=shown, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            complain(
                f"{self.url} does not answer: {error}", "Is the service running (mpu serve)? Set MPU_URL or --url."
            )
            raise Failed(EXIT_UNREACHABLE) from None
        if not answer.is_success:
            complain_of(answer)
            raise Failed(EXIT_FAILED)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            complain(f"what answers at {self.url} is not MPU: it sent no JSON", "Set MPU_URL or --url.")
            raise Failed(EXIT_FAILED) from None

    def items(self, path: str, limit: int, **query: object) -> Iterator[dict[str, Any]]:
        """At most `limit` rows of a list, page by page."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, **query, limit=min(limit, PAGE), cursor=cursor)
            yield from page["items"]
            limit -= len(page["items"])
            cursor = page["next"]
            if cursor is None:
                return


def _query_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def complain_of(answer: httpx.Response) -> None:
    """Tell a problem (RFC 9457) in words."""
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or answer.reason_phrase)
    complain(f"{detail} ({answer.status_code})", str(problem.get("remedy") or ""))
    for error in problem.get("errors") or []:
        line = ": ".join(str(part) for part in (error.get("pointer"), error.get("detail")) if part)
        if line not in detail:  # which sums up the first of them
            complain(line)
    if problem.get("required_scope"):
        complain(f"a key with the scope {problem['required_scope']!r} is needed")
