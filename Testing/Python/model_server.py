# SPDX-License-Identifier: Apache-2.0
"""A local web server for tests of downloads, which can also fail."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """The served files, and the requests received.

    :param files: content by path; for a path in `cut`, one response is truncated to that many bytes.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.ranges: list[str | None] = []


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
            if start >= len(content):
                self.send_error(416)
                return
            content = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: server.cut.pop(self.path, len(content))])

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
