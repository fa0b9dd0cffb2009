"""Incremental and lenient parsing of an HTTP/1.1 response.

A proxy in front of AMO may send a megabyte of headers, two content lengths, or a space in a header name. No library's
parser accepts all of that, but a response with invalid framing may contain the only copy of a token pair. This parser
never raises: it skips malformed parts of a response, and keeps the received bytes.
"""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from http import HTTPStatus

HEAD_LIMIT = 1024 * 1024
"""The maximum number of header bytes to keep; further header bytes are skipped."""
_ENDLESS = 16 * HEAD_LIMIT
"""The number of header bytes after which the response is no longer read."""
_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+[ \t]+([1-9][0-9]{2})(?![0-9])")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 3
"""The maximum length of a partial header terminator (CR LF CR LF without its last byte)."""
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LONGEST_CHUNK_LINE = 4096
_WITHOUT_CONTENT = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
_GZIP = b"\x1f\x8b"


class Response:
    """A response that is being received; at most `limit` bytes after the headers are kept."""

    def __init__(self, *, limit: int) -> None:
        self.status = 0
        """The status code; 0 until the headers of the final response are complete."""
        self.headers: dict[str, str] = {}
        """Headers by lower-case name; if a header is repeated, its first value."""
        self.is_complete = False
        """Whether reading has ended, because the response is complete, too large, or unparsable."""
        self.is_too_large = False
        """Whether more than `limit` bytes have arrived after the headers."""
        self._limit = limit
        self._head = bytearray()
        self._head_size = 0
        self._received = bytearray()
        """The bytes after the headers, as received."""
        self._content = bytearray()
        """The bytes after the headers, without chunk framing."""
        self._chunked = False
        self._line = bytearray()
        """The bytes of a chunked body that are not parsed yet, such as an incomplete size line."""
        self._left: int | None = None
        """The number of bytes left in the current chunk or in the content; `None` if it is unknown."""

    def feed(self, data: bytes) -> None:
        rest = data if self.status else self._read_head(data)
        if not rest or self.is_complete:
            return
        kept = rest[: self._limit - len(self._received)]
        self.is_too_large = len(kept) < len(rest)
        self._received += kept
        if self._chunked:
            self._read_chunks(kept)
        else:
            self._content += kept
            self.is_complete = self._left is not None and len(self._content) >= self._left
        self.is_complete = self.is_complete or self.is_too_large

    def end(self) -> None:
        """Record that the peer has closed the connection, which completes a response without a length or chunks."""
        self.is_complete = self.is_complete or (bool(self.status) and self._left is None and not self._chunked)

    @property
    def bodies(self) -> tuple[bytes, ...]:
        """Possible bodies, the most likely first.

        Decompressed bodies come before compressed ones. In each group, the body without chunk framing comes first.
        """
        content, received = bytes(self._content), bytes(self._received)
        encoding = self.headers.get("content-encoding", "").strip().lower()
        unpacked = (_unpacked(body, encoding, limit=self._limit) for body in (content, received))
        return tuple(dict.fromkeys(body for body in (*unpacked, content, received) if body)) or (b"",)

    # --- headers ---------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bytes:
        """Parse the headers once they are complete, and return the bytes after them."""
        while data:
            self._head_size += len(data)
            begin = max(len(self._head) - _LONGEST_END, 0)
            self._head += data
            end = _END_OF_HEAD.search(self._head, begin)
            if end is None:
                del self._head[HEAD_LIMIT:-_LONGEST_END]
                self.is_complete = self._head_size > _ENDLESS
                return b""
            data = bytes(self._head[end.end() :])
            self._read_lines(bytes(self._head[: end.start()]))
            self._head.clear()
            if self.status:
                self._begin_content()
                return data
            if self.is_complete:
                break
        return b""

    def _read_lines(self, head: bytes) -> None:
        """Parse the status line and the headers; skip interim responses, which have a 1xx status other than 101."""
        lines = head.strip().splitlines()
        if not lines:
            return
        status_line = _STATUS_LINE.match(lines[0])
        if status_line is None:
            self.is_complete = True
            return
        status = int(status_line[1])
        if 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return
        self.status = status
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                key, text = name.strip().lower().decode("latin-1"), value.strip().decode("latin-1")
                if key == "content-length" and self.headers.setdefault(key, text) != text:
                    self.headers[key] = ""  # the lengths differ, so neither is used
                self.headers.setdefault(key, text)

    def _begin_content(self) -> None:
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = {part.strip() for part in self.headers.get("content-length", "").split(",")}
        if self.status in _WITHOUT_CONTENT:
            self.is_complete = True
        elif not self._chunked and len(length) == 1 and (text := length.pop()).isascii() and text.isdigit():
            self._left = int(text[:20])
            self.is_complete = self._left == 0

    # --- content ---------------------------------------------------------------------------------

    def _read_chunks(self, data: bytes) -> None:
        """Remove chunk framing; bytes without valid framing become content unchanged."""
        self._line += data
        while self._line:
            if self._left:
                taken = bytes(self._line[: self._left])
                self._content += taken
                self._left -= len(taken)
                del self._line[: len(taken)]
                continue
            end = self._line.find(b"\n", 0, _LONGEST_CHUNK_LINE)
            if end < 0 and len(self._line) < _LONGEST_CHUNK_LINE:
                return
            line = bytes(self._line[: max(end, 0)]).strip()
            size = _CHUNK_SIZE.match(line)
            if end < 0 or (line and size is None):
                self._chunked, self._left = False, None
                self._content += self._line
                return
            del self._line[: end + 1]
            if size is not None:
                self._left = int(size[0], 16)
                self.is_complete = self._left == 0
                if self.is_complete:
                    return


def _unpacked(body: bytes, encoding: str, *, limit: int) -> bytes:
    """Decompress a body to at most `limit` bytes; return it unchanged if it cannot be decompressed."""
    windows: tuple[int, ...] = ()
    if body.startswith(_GZIP):
        windows = (zlib.MAX_WBITS | 16,)
    elif encoding == "deflate":
        windows = (zlib.MAX_WBITS, -zlib.MAX_WBITS)  # the zlib header is required, but often omitted
    for window in windows:
        with suppress(zlib.error):
            return zlib.decompressobj(window).decompress(body, limit)
    return body
