"""How a flow's methods hang together, drawn: as an outline for eyes, as Mermaid for pages.

A graph is what a flow's row holds, so it may have been written by anybody: what is no graph is drawn as an empty one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"(?!end$)\w+")
"""A name that Mermaid takes as it is."""
_DEEPEST_RAILS = 50


@dataclass(frozen=True)
class Edge:
    """That `target` follows `source`. `label` is what a router must answer for it; empty: it follows anyway."""

    source: str
    target: str
    label: str


@dataclass(frozen=True)
class Node:
    """A method. `waits_for` are those that must all have ended before it starts; empty: any of them will do."""

    is_router: bool = False
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """The methods of a flow by name, those that it starts with, and what follows what."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    starts: tuple[str, ...]

    @classmethod
    def of(cls, definition: Any) -> Graph:
        """The graph in `nodes`, `edges` and `start_methods`, as CrewAI's `build_flow_structure` gives them."""
        given = definition if isinstance(definition, dict) else {}
        nodes, edges, starts = given.get("nodes"), given.get("edges"), given.get("start_methods")
        return cls(
            nodes={name: _node(node) for name, node in nodes.items()} if isinstance(nodes, dict) else {},
            edges=tuple(_edge(edge) for edge in _list(edges) if isinstance(edge, dict)),
            starts=tuple(str(name) for name in _list(starts)),
        )


def _node(given: Any) -> Node:
    if not isinstance(given, dict):
        return Node()
    waits = str(given.get("condition_type") or "").upper() == "AND"
    methods = tuple(str(name) for name in _list(given.get("trigger_methods"))) if waits else ()
    return Node(bool(given.get("is_router")), methods)


def _edge(given: dict[str, Any]) -> Edge:
    return Edge(str(given.get("source")), str(given.get("target")), str(given.get("router_event") or ""))


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


# -- Outline ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A method in an outline, `depth` steps below the flow. What follows it stands below, once.

    `is_again`: it stands further up already. `is_last`: nothing else follows what it follows.
    """

    depth: int
    method: str
    label: str
    node: Node
    is_again: bool
    is_last: bool

    @property
    def remarks(self) -> str:
        """What is to be said beside its name."""
        router = "  router" if self.node.is_router else ""
        waits = f"  waits for {', '.join(self.node.waits_for)}" if self.node.waits_for else ""
        return router + waits + ("  ↑" if self.is_again else "")


def outline(graph: Graph) -> Iterator[Line]:
    """The methods from the starts on, each before what follows it."""
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        below[edge.source].append(edge)
    seen: set[str] = set()
    waiting = _waiting(0, [(name, "") for name in graph.starts])
    while waiting:
        depth, method, label, is_last = waiting.pop()
        yield Line(depth, method, label, graph.nodes.get(method, Node()), method in seen, is_last)
        if method not in seen:
            seen.add(method)
            waiting += _waiting(depth + 1, [(edge.target, edge.label) for edge in below[method]])


def _waiting(depth: int, followers: list[tuple[str, str]]) -> list[tuple[int, str, str, bool]]:
    """The first of them last, from where it is taken."""
    return [(depth, name, label, at == 0) for at, (name, label) in enumerate(reversed(followers))]


def text(name: str, graph: Graph) -> str:
    """The outline below the flow's name, each method on its line."""
    lines, rails = [name], list[str]()
    for line in outline(graph):
        del rails[line.depth :]
        label = f"{line.label} → " if line.label else ""
        corner = "└── " if line.is_last else "├── "
        lines.append("".join(rails[-_DEEPEST_RAILS:]) + corner + label + line.method + line.remarks)
        rails.append("    " if line.is_last else "│   ")
    return "\n".join(lines)


# -- Mermaid ----------------------------------------------------------------------------------------------------------


def mermaid(graph: Graph) -> str:
    """A flowchart in Mermaid's language; routers are hexagons."""
    ids = {name: name if _PLAIN.fullmatch(name) else f"method_{at}" for at, name in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for name, node in graph.nodes.items():
        shape = "{{{{{}}}}}" if node.is_router else "[{}]"
        lines.append(f"  {ids[name]}{shape.format(_label(name))}")
    for edge in graph.edges:
        label = f"|{_label(edge.label)}|" if edge.label else ""
        lines.append(f"  {ids.get(edge.source, 'unknown')} -->{label} {ids.get(edge.target, 'unknown')}")
    return "\n".join(lines)


def _label(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    escaped = "".join(f"#{ord(one)};" if one in '"#&<>' or not one.isprintable() else one for one in name)
    return f'"{escaped}"'
