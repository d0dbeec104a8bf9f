"""Frames between the child and the worker: a version byte, a length, a JSON object.

Both sides use this file; it knows nothing of what the frames mean. A reader never trusts the writer: the child runs
code that is not ours.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

VERSION = 1
_HEADER = struct.Struct(">BI")
HEADER_SIZE = _HEADER.size
_LONGEST = 256 * 1024 * 1024
_DESCRIPTORS_AT_ONCE = 8
_to_json = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: `json.dumps` makes one for each call that asks for separators."""


class BrokenFrame(ValueError):
    """What arrived is not a frame of this version."""


def pack(message: dict[str, Any]) -> bytes:
    """One frame. Lone surrogates and NaN must have been dealt with by `encode` before."""
    return pack_json(_to_json(message).encode())


def pack_json(body: bytes) -> bytes:
    """One frame around JSON text that exists already."""
    return _HEADER.pack(VERSION, len(body)) + body


class Decoder:
    """Takes bytes as they come and gives whole messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes. Raises BrokenFrame when it makes no sense."""
        self._pending += data
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> dict[str, Any] | None:
        if len(self._pending) < _HEADER.size:
            return None
        size = _body_size(bytes(self._pending[: _HEADER.size]))
        end = _HEADER.size + size
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[_HEADER.size : end])
        del self._pending[:end]
        return _parse(body)


def send(channel: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Writes one frame to a blocking socket; `descriptors` travel with its first byte."""
    data = pack(message)
    sent = socket.send_fds(channel, [data], list(descriptors)) if descriptors else 0
    channel.sendall(data[sent:])


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Reads one frame from a blocking socket, with the descriptors that came along; None when the other side left."""
    header, descriptors, _, _ = socket.recv_fds(channel, _HEADER.size, _DESCRIPTORS_AT_ONCE)
    if not header:
        return None
    header += _read_exactly(channel, _HEADER.size - len(header))
    return _parse(_read_exactly(channel, _body_size(header))), descriptors


def _read_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise BrokenFrame("the other side left in the middle of a frame")
        data += piece
    return bytes(data)


def _body_size(header: bytes) -> int:
    version, size = _HEADER.unpack(header)
    if version != VERSION or size > _LONGEST:
        raise BrokenFrame(f"version {version}, {size} bytes")
    return int(size)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenFrame(f"no JSON: {error}") from error
    if not isinstance(message, dict):
        raise BrokenFrame("not an object")
    return message
