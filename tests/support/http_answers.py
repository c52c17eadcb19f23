"""A real HTTP server on loopback that gives the answers a test laid down, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(slots=True)
class Asked:
    method: str
    path: str
    key: str
    body: Any


@dataclass(slots=True)
class Answers:
    """`lay` answers for a call, in order; the last one is given again and again."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    _laid: dict[str, deque[tuple[int, Any]]] = field(default_factory=lambda: defaultdict(deque))

    def lay(self, call: str, body: Any, status: int = 200) -> None:
        self._laid[call].append((status, body))

    def answer(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        laid = self._laid.get(f"{asked.method} {asked.path}")
        if not laid:
            return 404, {"title": "There is no such thing", "detail": f"nothing is laid for {asked.path}"}
        return laid.popleft() if len(laid) > 1 else laid[0]


@contextmanager
def http_answers() -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(raw) if raw else None
            status, answer = answers.answer(Asked(self.command, self.path, self.headers.get("Authorization", ""), body))
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    answers.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
