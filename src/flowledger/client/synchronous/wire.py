# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""Requests to one server, sent again where that is safe."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from time import sleep
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from flowledger.client.address import API, Address
from flowledger.client.problems import code_of, error_of, not_understood
from flowledger.client.reading import UNFIT, read
from flowledger.client.retries import LASTING, PASSING, Attempts, wanted_pause
from flowledger.errors import FlowledgerError, InvalidInput, ServerUnreachable

T = TypeVar("T")

TIMEOUTS = httpx.Timeout(connect=5, read=30, write=30, pool=30)
"""Seconds for each phase of a request; reading is until the next bytes, not the last."""

_SAFE = frozenset({"GET", "HEAD"})


class Wire:
    """`retry_seconds` is how long a request may be sent again: one that changes nothing, or that is `repeatable`."""

    def __init__(self, address: Address, timeouts: httpx.Timeout, retry_seconds: float) -> None:
        self._address = address
        self._retry_seconds = retry_seconds
        # No redirect is followed: the token goes to the address that it was given for.
        self._http = httpx.Client(
            base_url=address.url + API,
            headers=address.headers,
            timeout=timeouts,
            follow_redirects=False,
            trust_env=not address.is_on_this_machine,
        )

    def close(self) -> None:
        self._http.close()

    def ping(self) -> None:
        """Raises ServerUnreachable, at once and without another try."""
        self._sent(self._request(("health",), "GET"), Attempts(0), stream=False)

    def ask(self, kind: type[T], method: str, *path: str, repeatable: bool = False, **given: Any) -> T:
        """The answer as `kind`. Raises ServerUnreachable, UnexpectedAnswer, and what the server's problem says."""
        response = self.send(method, *path, repeatable=repeatable, **given)
        try:
            return read(kind, json.loads(response.content))
        except UNFIT as unfit:
            raise not_understood(response, unfit) from unfit

    def send(
        self,
        method: str,
        *path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> httpx.Response:
        """The answer, read."""
        request = self._request(path, method, params=params, json=body, headers=headers)
        seconds = self._retry_seconds if repeatable or method in _SAFE else 0
        return self._sent(request, Attempts(seconds), stream=False)

    @contextmanager
    def stream(
        self,
        *path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        quiet_seconds: float,
        once: bool = False,
    ) -> Generator[httpx.Response]:
        """An answer to be read as it comes, whose head is there. `once`: it is asked for one time only.

        Raises also ServerUnreachable inside the block when it breaks off, or is silent for `quiet_seconds`.
        """
        timeouts = httpx.Timeout(**{**self._http.timeout.as_dict(), "read": quiet_seconds})
        request = self._request(path, "GET", params=params, headers=headers, timeout=timeouts)
        response = self._sent(request, Attempts(0 if once else self._retry_seconds), stream=True)
        try:
            yield response
        except httpx.RequestError as lost:
            raise self._unreachable(lost) from lost
        finally:
            response.close()

    def _request(self, path: tuple[str, ...], method: str, **given: Any) -> httpx.Request:
        where = "/".join(map(_step, path))
        return self._http.build_request(method, where, **{name: it for name, it in given.items() if it is not None})

    def _sent(self, request: httpx.Request, attempts: Attempts, *, stream: bool) -> httpx.Response:
        while True:
            trouble: FlowledgerError
            try:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
            except httpx.RequestError as lost:
                trouble, pause = self._unreachable(lost), attempts.pause()
            else:
                trouble, pause = error_of(response), _pause(response, attempts)
            if pause is None:
                raise trouble
            sleep(pause)

    def _unreachable(self, lost: httpx.RequestError) -> ServerUnreachable:
        return ServerUnreachable(self._address.url, str(lost) or type(lost).__name__)


def _step(part: str) -> str:
    """A part of a path. Slashes would make another path of it, on the server at the latest."""
    if part in ("", ".", "..") or "/" in part:
        raise InvalidInput("reference", f"{part!r} can name nothing", "Give an id, a prefix of it, or a key.")
    return quote(part, safe="")


def _pause(response: httpx.Response, attempts: Attempts) -> float | None:
    if response.status_code not in PASSING or code_of(response) in LASTING:
        return None
    return attempts.pause(wanted_pause(response.headers.get("retry-after")))
