"""Variants of a successful answer's bytes that a proxy, a server or a bug may produce."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

Content = dict[str, Any]
Shape = Callable[[Content], bytes]
"""A function that returns an answer's bytes for an issued pair."""

_OK = b"HTTP/1.1 200 OK\r\n"
_JSON = b"Content-Type: application/json\r\n"


def _body(content: Content) -> bytes:
    return json.dumps(content).encode()


def _framed(body: bytes, *headers: bytes, status: bytes = _OK) -> bytes:
    return status + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def _sized(body: bytes, *headers: bytes, status: bytes = _OK) -> bytes:
    return _framed(body, b"Content-Length: %d" % len(body), *headers, status=status)


def _chunked(body: bytes, *, size: int = 1 << 20, form: bytes = b"%x", end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(form % len(piece) + b"\r\n" + piece + b"\r\n" for piece in pieces) + end


def _in_chunks(**form: Any) -> Shape:
    return lambda content: _framed(_chunked(_body(content), **form), _JSON[:-2], b"Transfer-Encoding: chunked")


def _with(*headers: bytes, status: bytes = _OK) -> Shape:
    """Return a shape with a correct `Content-Length` and these headers."""
    return lambda content: _sized(_body(content), *headers, status=status)


def _lengths(*headers: str) -> Shape:
    """Return a shape with only these headers; `{}` stands for the correct length, `{longer}` for a larger one."""

    def shape(content: Content) -> bytes:
        body = _body(content)
        return _framed(body, *(header.format(len(body), longer=len(body) + 9).encode() for header in headers))

    return shape


def _compressed(pack: Callable[[bytes], bytes], *headers: bytes) -> Shape:
    return lambda content: _sized(pack(_body(content)), *headers)


def _text(before: bytes = b"", after: bytes = b"", *headers: bytes) -> Shape:
    return lambda content: _sized(before + _body(content) + after, *headers)


def _changed(**changes: Any) -> Shape:
    return lambda content: _sized(_body({**content, **changes}))


def _raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def _without(name: str) -> Shape:
    return lambda content: _sized(_body({key: value for key, value in content.items() if key != name}))


def _two_pairs(content: Content) -> bytes:
    other = {**content, "refresh_token": "another", "access_token": "another"}
    return _sized(json.dumps([content, other]).encode())


def _with_request(content: Content) -> bytes:
    spent = {"access_token": "the old one", "refresh_token": content["presented"]}
    return _sized(json.dumps({"request": spent, "result": content}).encode())


PAIRS: dict[str, Shape] = {
    # --- framing
    "with its length": _with(),
    "until the connection ends": lambda content: _framed(_body(content)),
    "in one chunk": _in_chunks(),
    "in chunks of one byte": _in_chunks(size=1),
    "in chunks with extensions": _in_chunks(size=100, form=b"%x;name=value"),
    "in chunks with long sizes": _in_chunks(size=100, form=b"%08X  "),
    "in chunks with a trailer": _in_chunks(end=b"0\r\nX-Checksum: 7\r\n\r\n"),
    "in chunks without an end": _in_chunks(end=b""),
    "in chunks with a broken end": _in_chunks(end=b"zz\r\n"),
    "chunks announced, none there": lambda content: _framed(_body(content), b"Transfer-Encoding: chunked"),
    "chunks there, none announced": lambda content: _framed(_chunked(_body(content))),
    "length twice, equal": _lengths("Content-Length: {}", "Content-Length: {}"),
    "length twice in one header": _lengths("Content-Length: {0}, {0}"),
    "two lengths": _lengths("Content-Length: {}", "Content-Length: 7"),
    "length beside chunks": lambda content: _framed(
        _chunked(_body(content)), b"Content-Length: %d" % len(_body(content)), b"Transfer-Encoding: chunked"
    ),
    "length beside identity": _lengths("Content-Length: {}", "Transfer-Encoding: identity"),
    "length too long": _lengths("Content-Length: {longer}"),
    "length too short": _lengths("Content-Length: 20"),
    "length no number": _lengths("Content-Length: many"),
    "length negative": _lengths("Content-Length: -1"),
    "length with a plus": _lengths("Content-Length: +{}"),
    # --- headers
    "a header of 8,191 bytes": _with(b"X-Long: " + b"a" * 8183),
    "a header of 64 KiB": _with(b"X-Long: " + b"a" * 65_536),
    "a header of 2 MiB": _with(b"X-Long: " + b"a" * 2_097_152),
    "129 headers": _with(*(b"X-%d: 1" % number for number in range(129))),
    "5,000 headers": _with(*(b"X-%d: 1" % number for number in range(5000))),
    "a header's name with a space": _with(b"X Name: 1"),
    "a header without a name": _with(b": 1"),
    "a header without a colon": _with(b"nothing"),
    "a header on two lines": _with(b"X-Folded: 1\r\n and more"),
    "a header that is no ASCII": _with("X-Кто: я".encode()),
    "a header with a zero byte": _with(b"X-Zero: \x00"),
    "lines without CR": lambda content: _sized(_body(content), _JSON[:-2]).replace(b"\r\n", b"\n"),
    "an empty line first": lambda content: b"\r\n" + _sized(_body(content)),
    # --- status lines
    "HTTP/1.0": _with(status=b"HTTP/1.0 200 OK\r\n"),
    "HTTP/2": _with(status=b"HTTP/2 200 \r\n"),
    "without a reason": _with(status=b"HTTP/1.1 200\r\n"),
    "201": _with(status=b"HTTP/1.1 201 Created\r\n"),
    "100 first": lambda content: b"HTTP/1.1 100 Continue\r\n\r\n" + _sized(_body(content)),
    "102 and 103 first": lambda content: (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _sized(_body(content))
    ),
    "twenty 103 first": lambda content: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20 + _sized(_body(content)),
    # --- content codings
    "gzip": _compressed(gzip.compress, b"Content-Encoding: gzip"),
    "x-gzip": _compressed(gzip.compress, b"Content-Encoding: x-gzip"),
    "gzip not announced": _compressed(gzip.compress),
    "gzip in chunks": lambda content: _framed(
        _chunked(gzip.compress(_body(content)), size=50), b"Content-Encoding: gzip", b"Transfer-Encoding: chunked"
    ),
    "gzip without its end": _compressed(lambda body: gzip.compress(body)[:-6], b"Content-Encoding: gzip"),
    "gzip announced, plain": _with(b"Content-Encoding: gzip"),
    "deflate": _compressed(zlib.compress, b"Content-Encoding: deflate"),
    "deflate without its header": _compressed(_raw_deflate, b"Content-Encoding: deflate"),
    "deflate announced, plain": _with(b"Content-Encoding: deflate"),
    "br announced, plain": _with(b"Content-Encoding: br"),
    "zstd announced, plain": _with(b"Content-Encoding: zstd"),
    "identity": _with(b"Content-Encoding: identity"),
    # --- text
    "a warning before": _text(b"<br />\n<b>Warning</b>: {main} in /a.php on line <b>7</b><br />\n"),
    "a comment after": _text(b"", b"\n<!-- 0.034 s -->"),
    "within HTML": _text(b"<html><body><pre>", b"</pre></body></html>", b"Content-Type: text/html"),
    "within a call": _text(b"callback(", b");"),
    "two objects in a row": _text(b'{"debug": {"time": 1}}\n'),
    "within an object": lambda content: _sized(json.dumps({"meta": {"n": 1}, "data": content}).encode()),
    "within a list": lambda content: _sized(json.dumps([content]).encode()),
    "the same twice": lambda content: _sized(_body(content) * 2),
    "with the presented token in another object": _with_request,
    "spaces around": _text(b" \r\n\t", b"\n\n"),
    "a line's end in the tokens": lambda content: _sized(
        _body({**content, **{name: content[name] + "\n" for name in ("access_token", "refresh_token")}})
    ),
    "with a UTF-8 byte order mark": _text(b"\xef\xbb\xbf"),
    "UTF-16": lambda content: _sized(json.dumps(content).encode("utf-16")),
    "UTF-16 without a byte order mark": lambda content: _sized(json.dumps(content).encode("utf-16-be")),
    "with windows-1251 text": lambda content: _sized(
        json.dumps({**content, "account": "Недвижимость"}, ensure_ascii=False).encode("windows-1251")
    ),
    "as HTML": _with(b"Content-Type: text/html; charset=windows-1251"),
    # --- the token's lifetime
    "lifetime as text": _changed(expires_in="86400"),
    "lifetime as a fraction": _changed(expires_in=86400.5),
    "negative lifetime": _changed(expires_in=-1),
    "excessive lifetime": _changed(expires_in=10**30),
    "lifetime as an object": _changed(expires_in={"seconds": 86400}),
    "without lifetime": _without("expires_in"),
    "without type": _without("token_type"),
}
"""Shapes from which the pair must be read."""

NO_PAIRS: dict[str, Shape] = {
    "no body": lambda _content: _sized(b""),
    "204": lambda _content: _framed(b"", status=b"HTTP/1.1 204 No Content\r\n"),
    "a page": lambda _content: _sized(b"<h1>Maintenance</h1>", b"Content-Type: text/html"),
    "half of it": lambda content: _sized(_body(content)[: len(_body(content)) // 2]),
    "half of a gzip": _compressed(lambda body: gzip.compress(body)[:60], b"Content-Encoding: gzip"),
    "br": _compressed(lambda body: bytes(byte ^ 0x5A for byte in body), b"Content-Encoding: br"),
    "no refresh token": _without("refresh_token"),
    "no access token": _without("access_token"),
    "the presented token": lambda content: _sized(_body({**content, "refresh_token": content["presented"]})),
    "two pairs": _two_pairs,
    "tokens that are numbers": _changed(access_token=1, refresh_token=2),
    "tokens with line ends in them": _changed(access_token="a\nb", refresh_token="c\nd"),
}
"""Shapes of a successful answer without a readable pair."""
