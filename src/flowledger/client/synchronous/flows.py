# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""`client.flows`: which there are, what each takes, how it hangs together, and its pause."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

from flowledger.client.answers import Changed, FlowPage, ListedFlow, WholeFlow
from flowledger.client.synchronous.wire import Wire
from flowledger.client.wanted import as_body, as_params

Drawing = Literal["text", "mermaid"]


class Flows:
    """A `key` that names no flow, or none that the caller may see, raises FlowNotFound with the nearest."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def page(
        self,
        *,
        limit: int = 50,
        after: str | None = None,
        status: str | Sequence[str] = "active",
        search: str | None = None,
    ) -> FlowPage:
        """A page of flows, by key: after the `next` of the page before. `search` is words of name and description, or a
        part of the key.
        """
        params = as_params({"limit": limit, "after": after, "status": status, "search": search})
        return self._wire.ask(FlowPage, "GET", "flows", params=params)

    def list(
        self, *, page_size: int = 100, status: str | Sequence[str] = "active", search: str | None = None
    ) -> Generator[ListedFlow]:
        """All of them, by key; the next page is fetched when it is reached."""
        after = None
        while True:
            page = self.page(limit=page_size, after=after, status=status, search=search)
            for flow in page.flows:
                yield flow
            if (after := page.next) is None:
                return

    def get(self, key: str) -> WholeFlow:
        """One flow, in full."""
        return self._wire.ask(WholeFlow, "GET", "flows", key)

    def graph(self, key: str) -> dict[str, Any]:
        """Its methods and what leads from one to another, as CrewAI tells it."""
        return self._wire.ask(dict[str, Any], "GET", "flows", key, "graph")

    def drawn(self, key: str, drawing: Drawing = "text") -> str:
        """The same as an outline, or in Mermaid's language."""
        return (self._wire.send("GET", "flows", key, "graph", params={"format": drawing})).text

    def schema(self, key: str) -> dict[str, Any]:
        """The JSON Schema of its inputs; empty when it takes anything."""
        return self._wire.ask(dict[str, Any], "GET", "flows", key, "schema")

    def inputs(self, key: str) -> tuple[str, ...]:
        """The names of its inputs; none when it takes anything."""
        return tuple((self.schema(key)).get("properties", ()))

    def pause(self, key: str, reason: str | None = None) -> bool:
        """Lets nothing of it start until it is resumed. False: it was paused already. For operators."""
        body = as_body({"reason": reason})
        return (self._wire.ask(Changed, "PUT", "flows", key, "pause", body=body)).changed

    def resume(self, key: str) -> bool:
        """Lets it start again, whoever paused it. False: it was not paused. For operators."""
        return (self._wire.ask(Changed, "DELETE", "flows", key, "pause")).changed
