"""Where the flow's process stops to ask: whether it is to end, and before an LLM call, whether there is room for it.

Inside the child: standard library only. The worker answers on the run's control socket. A wish to end is looked for at
each step and call, without waiting. Room is asked for when the execution has a budget: the prompt is measured here, the
worker knows prices and what is spent, and the call waits for its answer.

A call that has to wait for others to turn out cheaper must not hold up the event loop that these run on. There the
attempt is given up with `RoomAwaited` and begun anew after a pause, by the function in which CrewAI retries async calls
(`arun_with_rate_limit_retry`). A sync call inside an event loop, or a CrewAI without that function, cannot wait, and
nor can a call inside another one, which would be waiting for itself: they are refused. The same function sees that a
flow gives a call up before its end, as a timeout around it does, which CrewAI tells nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from flowledger.runner import prompt, wire

_WORKER_IS_GONE = "the worker is gone"
_READ_BYTES = 65_536
_SHORTEST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5

_CANNOT_WAIT = (
    "it had to wait for calls that are being made, and {why} cannot. In an async method use `await llm.acall(...)`"
)


class Attempt:
    """One attempt to make an async call. `given_up` is called when it is cancelled while the call is being made."""

    def __init__(self) -> None:
        self.given_up: Callable[[], None] = lambda: None


_attempt: ContextVar[Attempt | None] = ContextVar("flowledger_attempt", default=None)


def current_attempt() -> Attempt | None:
    """None: the call that is being made is no async one."""
    return _attempt.get()


class RoomAwaited(BaseException):
    """There is no room for this call before others have ended. Not an Exception: nobody between here and the retry is
    to take it for a failure.
    """


class Refused(Exception):
    """The call may not be made. `reason` is the worker's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Gate:
    """One for the process. `asks` False: there is no budget, and every call may be made."""

    def __init__(self, control: socket.socket, send: Callable[[dict[str, Any]], None], *, asks: bool) -> None:
        self._control = control
        self._send = send
        self._asks = asks
        self._decoder = wire.Decoder()
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        self._stop: str | None = None

    # -- Ending -------------------------------------------------------------------------------------------------------

    @property
    def stop(self) -> str | None:
        """Why the flow is to end; None while it may go on."""
        if self._stop is None and self._reader is None:
            with self._lock, contextlib.suppress(OSError):
                self._take(self._control.recv(_READ_BYTES, socket.MSG_DONTWAIT))
        return self._stop

    # -- Room ---------------------------------------------------------------------------------------------------------

    @property
    def asks(self) -> bool:
        return self._asks

    def pass_through(self, number: int, llm: Any, event: Any, *, inside_call: bool = False) -> str | None:
        """Lets an LLM call through; answers with a warning if there is one. Raises Refused, RoomAwaited."""
        if not self._asks:
            return None
        may_begin_anew = _attempt.get() is not None and not inside_call
        patient = not (inside_call or may_begin_anew or _in_event_loop())
        answer = self._ask(number, {**_question(llm, event), "patient": patient})
        if answer["verdict"] == "wait" and may_begin_anew:
            raise RoomAwaited
        if answer["verdict"] == "wait":
            why = "a call inside another one" if inside_call else "a call that holds up its event loop"
            raise Refused(f"{answer['reason']}; {_CANNOT_WAIT.format(why=why)}")
        if answer["verdict"] != "go":
            raise Refused(answer["reason"])
        warning = answer.get("warning")
        return None if warning is None else str(warning)

    def _ask(self, number: int, question: dict[str, Any]) -> dict[str, Any]:
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._stop is not None:
                return {"verdict": "stop", "reason": self._stop}
            self._answers[number] = answer
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="flowledger-gate", daemon=True)
                self._reader.start()
        self._send({"kind": "ask", "call": number, **question})
        return answer.result()

    def _read(self) -> None:
        """From the first question on, one thread reads for all that wait."""
        while self._stop != _WORKER_IS_GONE:
            try:
                data = self._control.recv(_READ_BYTES)
            except OSError:
                data = b""
            with self._lock:
                self._take(data)

    def _take(self, data: bytes) -> None:
        # Not a word but the end of the stream: the worker is gone and the supervisor is about to end us.
        messages: list[dict[str, Any]] = self._decoder.feed(data) if data else [{"stop": _WORKER_IS_GONE}]
        for message in messages:
            if "stop" in message:
                self._stop = str(message["stop"])
                for number in list(self._answers):
                    self._answer(number, {"verdict": "stop", "reason": self._stop})
            else:
                self._answer(int(message["answer"]), message)

    def _answer(self, number: int, message: dict[str, Any]) -> None:
        waiting = self._answers.pop(number, None)
        if waiting is not None:
            waiting.set_result(message)


def let_async_calls_wait() -> None:
    """An async call that finds no room is begun anew after a pause. Raises AttributeError where CrewAI has no place."""
    from crewai.llms import base_llm

    retrying = base_llm.arun_with_rate_limit_retry

    async def when_there_is_room(operation: Callable[[], Awaitable[Any]], **options: Any) -> Any:
        return await retrying(lambda: _begun_anew_until_there_is_room(operation), **options)

    base_llm.arun_with_rate_limit_retry = when_there_is_room


async def _begun_anew_until_there_is_room(operation: Callable[[], Awaitable[Any]]) -> Any:
    pause = _SHORTEST_PAUSE_SECONDS
    while True:
        attempt = Attempt()
        token = _attempt.set(attempt)
        try:
            return await operation()
        except RoomAwaited:
            pass
        except asyncio.CancelledError:
            attempt.given_up()
            raise
        finally:
            _attempt.reset(token)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _question(llm: Any, event: Any) -> dict[str, Any]:
    given = vars(event)
    choices, most = given.get("n"), given.get("max_tokens")
    return {
        "model": str(given.get("model") or ""),
        "provider": str(getattr(llm, "provider", None) or "unknown"),
        "size": prompt.measure(given.get("messages"), given.get("tools")),
        "max_tokens": int(most) if isinstance(most, (int, float)) and most > 0 else None,
        "choices": choices if isinstance(choices, int) and choices > 0 else 1,
    }


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - the public one raises, at each call
