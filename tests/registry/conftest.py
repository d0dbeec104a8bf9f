"""Projects on disk for the registry's tests, and one look at each that several tests share."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flowledger import registry
from flowledger.domain.flow import Discovery
from flowledger.domain.project import Project
from flowledger.runner.process import Template
from tests.registry.projects import EXAMPLES, Write

Beside = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="session")
def write() -> Write:
    """Writes a project: file names to texts."""

    def written(root: Path, files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return written


@pytest.fixture(scope="session")
def look(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Discovery]:
    """Locates and discovers in one go."""

    def looked(
        target: Path, *, seconds: float = 30, secrets: tuple[str, ...] = (), python: Path | None = None
    ) -> Discovery:
        project = registry.locate(str(target), python)
        storage = tmp_path_factory.mktemp("storage")
        return registry.discover(project, seconds=seconds, secrets=secrets, storage=storage)

    return looked


@pytest.fixture(scope="session")
def beside() -> Iterator[Beside]:
    """A loop of its own, which lives as long as the processes that it holds; the tests' own stands still in a test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def warm(beside: Beside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Template]]:
    """What holds CrewAI in an isolation, for all looks that ask for nothing of their own."""
    begun: dict[str, Template] = {}

    def warmed(isolation: str) -> Template:
        if isolation not in begun:
            project = registry.locate(str(EXAMPLES), None)
            begun[isolation] = beside(_begin(project, isolation, tmp_path_factory.mktemp("storage")))
        return begun[isolation]

    yield warmed
    for template in begun.values():
        beside(template.close())


async def _begin(project: Project, isolation: str, storage: Path, secrets: tuple[str, ...] = ()) -> Template:
    # Nothing forces namespaces; None is where they are taken if they can be.
    wanted: Any = None if isolation == "namespace" else isolation
    template = await Template.begin(project, secrets=secrets, storage=storage, import_seconds=60, isolation=wanted)
    if template.isolation != isolation:
        await template.close()
        pytest.skip("this kernel grants no PID namespaces to this user")
    return template


@pytest.fixture(scope="session")
def look_in_base(
    beside: Beside, warm: Callable[[str], Template], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Discovery]:
    """The same as a worker does it: in a fork of the process that holds CrewAI."""

    async def describe(template: Template, project: Project, then: Callable[[], None]) -> Discovery:
        try:
            lines = await template.describe()
            then()
            return registry.discovered(project, lines)
        finally:
            await template.close()

    def looked(
        target: Path,
        *,
        secrets: tuple[str, ...] | None = None,
        isolation: str = "namespace",
        then: Callable[[], None] = lambda: None,
    ) -> Discovery:
        """With `secrets`, CrewAI is imported anew. `then` is called while the process that holds it lives."""
        project = registry.locate(str(target), None)
        if secrets is not None:
            template = beside(_begin(project, isolation, tmp_path_factory.mktemp("storage"), secrets))
        else:
            base = warm(isolation)
            template = Template(base._base.shared(), dataclasses.replace(base._sources, project=project))
        return beside(describe(template, project, then))

    return looked
