"""What the registry's tests name again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowledger.domain.flow import BrokenModule, Discovery, Flow

EXAMPLES = Path(__file__).parents[2] / "examples"

Write = Callable[[Path, Mapping[str, str]], Path]


def flow_at(discovery: Discovery, entry_point: str) -> Flow:
    return next(flow for flow in discovery.flows if flow.entry_point == entry_point)


def broken_at(discovery: Discovery, module: str) -> BrokenModule:
    return next(broken for broken in discovery.broken if broken.module == module)
