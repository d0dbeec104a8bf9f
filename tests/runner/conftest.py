"""A project of hostile flows, a warm template for it in each isolation, and a recorder that keeps everything."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flowledger.domain.execution import Outcome
from flowledger.domain.project import Project
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.runner.limits import Limits
from flowledger.runner.process import Order, Template, run

ROOT = Path(__file__).parent / "flows"
MODULES = ("house.plain", "house.faults", "house.descendants", "house.hungry", "house.floods")
SECRET = "a-long-s3cret-word-of-the-ledger"


@dataclass
class Recording:
    events: list[Event] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    calls: list[PricedCall] = field(default_factory=list)
    on_log: Callable[[LogLine], None] | None = None

    def event(self, event: Event) -> None:
        self.events.append(event)

    def call(self, call: PricedCall) -> None:
        self.calls.append(call)

    def log(self, line: LogLine) -> None:
        self.lines.append(line)
        if self.on_log is not None:
            self.on_log(line)

    def text(self, stream: str) -> str:
        return "".join(line.text for line in self.lines if line.stream == stream)


def project(*modules: str) -> Project:
    return Project(ROOT, Path(sys.executable), (ROOT / "src",), modules or MODULES)


def order(entry_point: str, inputs: dict[str, Any] | None = None, **changes: Any) -> Order:
    facts: dict[str, Any] = {
        "execution_id": uuid4(),
        "flow_key": "a-flow",
        "entry_point": entry_point,
        "inputs": inputs or {},
        "timeout_seconds": 30,
        "max_output_bytes": 1_048_576,
        "max_log_bytes": 65_536,
        "max_events": 10_000,
        "grace_seconds": 1,
        "lease_seconds": 30,
    }
    return Order(**{**facts, **changes})


@dataclass
class Runner:
    """Runs a flow of the project and keeps what was recorded of the last one."""

    template: Template
    recording: Recording = field(default_factory=Recording)

    async def __call__(
        self, entry_point: str, inputs: dict[str, Any] | None = None, limits: Limits | None = None, **changes: Any
    ) -> Outcome:
        self.recording.events.clear()
        self.recording.lines.clear()
        self.recording.calls.clear()
        return await run(self.template, order(entry_point, inputs, **changes), limits or Limits(), self.recording)


@pytest.fixture(scope="session")
async def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crewai")


async def _template(storage: Path, isolation: Any) -> AsyncIterator[Template]:
    template = await Template.start(
        project(), secrets=[SECRET], storage=storage, import_seconds=60, isolation=isolation
    )
    yield template
    await template.close()


@pytest.fixture(scope="session")
async def namespace_template(storage: Path) -> AsyncIterator[Template]:
    async for template in _template(storage, None):
        if template.isolation != "namespace":
            pytest.skip("this kernel grants no PID namespaces to this user")
        yield template


@pytest.fixture(scope="session")
async def subreaper_template(storage: Path) -> AsyncIterator[Template]:
    async for template in _template(storage, "subreaper"):
        yield template


@pytest.fixture
async def flow(namespace_template: Template) -> Runner:
    return Runner(namespace_template)


@pytest.fixture(params=["namespace", "subreaper"])
async def either(request: pytest.FixtureRequest, namespace_template: Template, subreaper_template: Template) -> Runner:
    """A test with this fixture runs in both isolations."""
    return Runner(namespace_template if request.param == "namespace" else subreaper_template)
