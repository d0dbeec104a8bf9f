"""A flow as discovered in a project: what it is called, what it takes, how its methods hang together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLOW_KEY_LENGTH = 100
"""Characters that `crewai_flows.flow_key character varying(100)` holds."""


@dataclass(frozen=True)
class Flow:
    """`entry_point` is `module:Class`, or the path of a declarative YAML file relative to the project's root.

    `input_schema` is the JSON Schema of the state model; None for an untyped (dict) state, which takes any input.
    `graph` has `nodes`, `edges`, `start_methods`, `router_methods` as CrewAI's `build_flow_structure` gives them.
    `fingerprint` changes exactly when source or graph change.
    """

    key: str
    name: str
    description: str
    entry_point: str
    input_schema: dict[str, Any] | None
    graph: dict[str, Any]
    source: str
    fingerprint: str


@dataclass(frozen=True)
class BrokenModule:
    """A module of the project that could not be loaded, and why."""

    module: str
    error_type: str
    error_message: str
    error_stack: str


@dataclass(frozen=True)
class Discovery:
    """What one look at a project found: the flows that load and, beside them, the modules that do not."""

    flows: tuple[Flow, ...] = ()
    broken: tuple[BrokenModule, ...] = ()
    crewai_version: str = ""
    python_version: str = ""
    warnings: tuple[str, ...] = field(default=())

    def find(self, name: str) -> Flow | None:
        """The flow whose key, class name, display name or entry point is `name`."""
        for flow in self.flows:
            if name in (flow.key, flow.name, flow.entry_point, flow.entry_point.rpartition(":")[2]):
                return flow
        return None
