"""A flow's graph, drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from flowledger.domain.graph import Graph, mermaid, text

GIVEN: dict[str, Any] = {
    "nodes": {
        "first": {},
        "judge": {"is_router": True},
        "both": {"condition_type": "AND", "trigger_methods": ["first", "judge"]},
        "end": {},
    },
    "edges": [
        {"source": "first", "target": "judge"},
        {"source": "judge", "target": "end", "router_event": "good"},
        {"source": "judge", "target": "first", "router_event": "try again"},
        {"source": "first", "target": "both"},
    ],
    "start_methods": ["first"],
}


def test_the_outline_tells_labels_routers_waiting_and_what_stands_above():
    assert text("FLOW", Graph.of(GIVEN)).splitlines() == [
        "FLOW",
        "└── first",
        "    ├── judge  router",
        "    │   ├── good → end",
        "    │   └── try again → first  ↑",
        "    └── both  waits for first, judge",
    ]


def test_mermaid_is_given_no_name_that_means_something_to_it():
    assert mermaid(Graph.of(GIVEN)).splitlines() == [
        "flowchart TD",
        "  first[first]",
        "  judge{{judge}}",
        "  both[both]",
        '  method_3["end"]',
        "  first --> judge",
        "  judge -->|good| method_3",
        '  judge -->|"try again"| first',
        "  first --> both",
    ]
    hostile = {"nodes": {'x"]; click x href "javascript:1"\n': {}}}
    assert mermaid(Graph.of(hostile)).splitlines()[1] == ('  method_0["x#34;]; click x href #34;javascript:1#34;#10;"]')


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "graph",
        {"nodes": [1], "edges": {"a": 1}, "start_methods": "a"},
        {
            "nodes": {"a": 1, "b": {"condition_type": 3, "trigger_methods": 4}},
            "edges": [1, {}],
            "start_methods": [None],
        },
    ],
)
def test_what_is_no_graph_is_drawn_all_the_same(given):
    assert text("FLOW", Graph.of(given)).startswith("FLOW")
    assert mermaid(Graph.of(given)).startswith("flowchart TD")


def test_a_graph_is_drawn_however_long_it_is():
    names = [f"step{at}" for at in range(5000)]
    edges = [{"source": one, "target": other} for one, other in pairwise(names)]
    drawn = text("FLOW", Graph.of({"nodes": {}, "edges": edges, "start_methods": names[:1]}))
    assert drawn.count("\n") == 5000
    assert len(drawn) < 2_000_000
