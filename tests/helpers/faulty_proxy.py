"""A proxy before an object store that drops, delays and repeats requests, as a bad network does."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("request lost", "answer lost", "twice", "late")


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Proxy:
    """Forwards requests to a port of this machine; `fault` draws what happens to each.

    "request lost": it is not forwarded, and the connection ends. "answer lost": only the answer is.
    "twice": it is forwarded twice, and the second answer given. "late": the connection ends, and it
    is forwarded with the next `flush`. Anything else: it is forwarded.
    """

    target: int
    fault: Callable[[Request], str] = lambda request: ""
    change: Callable[[Request], Request] = lambda request: request
    seen: list[Request] = field(default_factory=list)
    late: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def calm(self) -> None:
        """No further faults; what is late arrives now."""
        self.fault = lambda request: ""
        self.flush()

    def flush(self) -> None:
        """Forwards what is late."""
        with self.lock:
            late, self.late = self.late, []
        for request in late:
            self.forward(request)

    def forward(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        """Sends a request on, and returns the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def faults(seed: int, rate: float = 0.2) -> Callable[[Request], str]:
    """Draws one of FAULTS for a part of the requests, never for two that follow one another."""
    draw, last = random.Random(seed), [False]

    def fault(request: Request) -> str:
        last[0] = not last[0] and draw.random() < rate
        return draw.choice(FAULTS) if last[0] else ""

    return fault


def handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    """What serves the requests of a proxy."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            request = proxy.change(
                Request(self.command, self.path, dict(self.headers), self.body())
            )
            with proxy.lock:
                proxy.seen.append(request)
                fault = proxy.fault(request)
                if fault == "late":
                    proxy.late.append(request)
            self.close_connection = True
            if fault in ("request lost", "late"):
                return
            try:
                if fault == "twice":
                    proxy.forward(request)
                status, headers, content = proxy.forward(request)
            except (OSError, http.client.HTTPException):  # who would answer is gone
                return
            if fault == "answer lost":
                return
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = dict((name.lower(), value) for name, value in headers).get("content-length")
            head = self.command == "HEAD" and length is not None
            self.send_header("Content-Length", str(length if head else len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                del self.headers["Expect"]
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            del self.headers["Transfer-Encoding"]
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.headers["Content-Length"] = str(sum(map(len, parts)))
            return b"".join(parts)

        def log_message(self, *words: object) -> None:
            pass

    for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
        setattr(Handler, f"do_{method}", Handler.handle_request)
    return Handler
