"""What is kept of a run's events and output, on the worker's side: bounded, and the rest counted."""

from __future__ import annotations

import codecs
import contextlib
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.runner.redact import Redactor

_LAST_EVENTS = 200
_LONGEST_CHARACTER = 4
_INSIDE_A_CHARACTER = 0x80


class Recorder(Protocol):
    """Takes facts as they happen. Called in the event loop: it must not block, and what it raises is dropped."""

    def event(self, event: Event) -> None: ...

    def log(self, line: LogLine) -> None: ...

    def call(self, call: PricedCall) -> None: ...


class BoundedTimeline:
    """The events of a run: the first as they come, the last that matter at the end, the others counted only."""

    def __init__(self, most: int, recorder: Recorder) -> None:
        self._left = most
        self._last: deque[Event] = deque(maxlen=_LAST_EVENTS)
        self._told = 0
        self._heard = 0
        self._recorder = recorder

    def take(self, event: Event) -> bool:
        """True if it was written, False if it is only counted, or kept for the end."""
        self.count_to(event.sequence)
        if self._left > 0:
            self._left -= 1
            self._write(event)
            return True
        if event.kind.matters_at_the_end:
            self._last.append(event)
        return False

    def count_to(self, sequence: int) -> None:
        """The run had that many events, whether or not they came here."""
        if not isinstance(sequence, int):
            raise TypeError(f"no sequence number: {sequence!r}")
        self._heard = max(self._heard, sequence)

    def finish(self) -> int:
        """Writes the last events; returns how many were dropped before and between them."""
        for event in self._last:
            self._write(event)
        self._last.clear()
        return max(0, self._heard - self._told)

    def _write(self, event: Event) -> None:
        self._told += 1
        with contextlib.suppress(Exception):
            self._recorder.event(event)


class BoundedLog:
    """One stream of a run: its head as it comes, its tail at the end, what lies between counted only; without secrets.

    What may be the beginning of a secret waits for what follows it. A secret across an edge of what is left out leaves
    no part of itself on either side. Bytes that are no text are kept as lone surrogates until they are written.
    """

    def __init__(
        self,
        stream: str,
        most_bytes: int,
        recorder: Recorder,
        redactor: Redactor | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """`numbers` are the lines' sequence numbers: the streams of a run share them."""
        self._stream = stream
        self._redactor = redactor or Redactor()
        self._numbers = numbers or count(1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._head_left = most_bytes // 2
        self._held = ""
        self._tail = bytearray()
        self._tail_size = most_bytes - most_bytes // 2
        self._dropped = 0
        self._recorder = recorder

    def take(self, data: bytes) -> None:
        # Postgres takes no NUL; what they stand between is looked at without them, as it is going to be read.
        data = data.replace(b"\x00", b"")
        if self._head_left > 0:
            self._held += self._decoder.decode(data)
            self._release(self._redactor.settled(self._held))
        elif data:
            self._take_tail(data)

    def finish(self) -> int:
        """Writes what was held back and the tail; returns how many bytes were dropped before it."""
        if self._head_left > 0:
            self._held += self._decoder.decode(b"", final=True)
            self._release(len(self._held))
        tail = self._last()
        if self._dropped:
            self._write(f"\n... {self._dropped:,} bytes left out ...\n")
        self._write(tail)
        return self._dropped

    def _release(self, settled: int) -> None:
        """Writes that much of what is held, as far as the head goes; what lies beyond it is the tail's."""
        end = _fitting(self._held[:settled], self._head_left)
        if end < settled:
            end = self._redactor.clear(self._held[:settled], end)
        given, self._held = self._held[:end], self._held[end:]
        told = self._redactor.text(given)
        # What stands for a secret may be longer than it was.
        self._write(told[: _fitting(told, self._head_left)])
        self._head_left = max(0, self._head_left - max(len(_bytes(given)), len(_bytes(told))))
        if end < settled or self._head_left == 0:
            self._head_left = 0
            self._take_tail(_bytes(self._held) + self._decoder.getstate()[0])
            self._held = ""

    def _take_tail(self, data: bytes) -> None:
        """Keeps as much more than the tail as a secret across its beginning may have."""
        kept = self._tail_size + self._redactor.lead
        self._tail += data[-kept:]
        self._dropped += max(0, len(data) - kept)
        if len(self._tail) > 2 * kept:
            self._dropped += len(self._tail) - kept
            del self._tail[:-kept]

    def _last(self) -> str:
        """The tail without secrets."""
        excess = max(0, len(self._tail) - self._tail_size)
        while excess and excess < len(self._tail) and self._tail[excess] & 0xC0 == _INSIDE_A_CHARACTER:
            excess += 1
        before = _text(self._tail[:excess])
        text = before + _text(self._tail[excess:])
        begin = self._redactor.clear(text, len(before)) if before else 0
        self._dropped += len(_bytes(text[:begin]))
        told = self._redactor.text(text[begin:])
        surplus = max(0, len(_bytes(told)) - self._tail_size)
        self._dropped += surplus
        return _text(_bytes(told)[surplus:])

    def _write(self, text: str) -> None:
        if not text:
            return
        told = _bytes(text).decode(errors="replace")
        line = LogLine(next(self._numbers), datetime.now(UTC), self._stream, told)
        with contextlib.suppress(Exception):
            self._recorder.log(line)


def _fitting(text: str, most_bytes: int) -> int:
    """How many of the first characters have no more bytes."""
    if len(text) <= most_bytes // _LONGEST_CHARACTER:
        return len(text)
    data = _bytes(text[:most_bytes])
    end = min(len(data), most_bytes)
    for _ in range(_LONGEST_CHARACTER - 1):
        if 0 < end < len(data) and data[end] & 0xC0 == _INSIDE_A_CHARACTER:
            end -= 1
    return min(len(text), len(_text(data[:end])))


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
