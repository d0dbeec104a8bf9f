"""What is kept of a run's events and output, on the worker's side: bounded, and the rest counted."""

from __future__ import annotations

import contextlib
from collections import deque
from datetime import UTC, datetime
from typing import Protocol

from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall

_LAST_EVENTS = 200


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
    """One stream of a run: its head as it comes, its tail at the end, what lies between counted only."""

    def __init__(self, stream: str, most_bytes: int, recorder: Recorder) -> None:
        self._stream = stream
        self._head_left = most_bytes // 2
        self._tail = bytearray()
        self._tail_size = most_bytes - most_bytes // 2
        self._dropped = 0
        self._sequence = 0
        self._split = b""
        self._recorder = recorder

    def take(self, data: bytes) -> None:
        if self._head_left > 0:
            head, data = data[: self._head_left], data[self._head_left :]
            self._head_left -= len(head)
            self._write(self._whole_characters(head))
        if data:
            self._tail += data[-self._tail_size :]
            self._dropped += max(0, len(data) - self._tail_size)
            if len(self._tail) > 2 * self._tail_size:
                self._cut_tail()

    def finish(self) -> int:
        """Writes the tail; returns how many bytes were dropped before it."""
        self._cut_tail()
        if self._dropped:
            self._write(self._split)
            self._split = b""
            self._write(f"\n... {self._dropped:,} bytes left out ...\n".encode())
        self._write(self._split + bytes(self._tail))
        self._tail.clear()
        self._split = b""
        return self._dropped

    def _cut_tail(self) -> None:
        excess = len(self._tail) - self._tail_size
        if excess > 0:
            self._dropped += excess
            del self._tail[:excess]

    def _whole_characters(self, data: bytes) -> bytes:
        """Keeps the beginning of a character that has not arrived in full for the next time."""
        data = self._split + data
        self._split = b""
        for back in range(1, min(4, len(data)) + 1):
            byte = data[-back]
            if byte >= 0xC0:
                width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                if width > back:
                    data, self._split = data[:-back], data[-back:]
                break
            if byte < 0x80:
                break
        return data

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self._sequence += 1
        text = data.decode(errors="replace").replace("\x00", "")
        with contextlib.suppress(Exception):
            self._recorder.log(LogLine(self._sequence, datetime.now(UTC), self._stream, text))
