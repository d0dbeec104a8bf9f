"""Projects on disk for the registry's tests, and one look at each that several tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flowledger import registry
from flowledger.domain.flow import Discovery
from flowledger.domain.project import Project
from flowledger.runner.process import Template
from tests.registry.projects import Write


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
def look_in_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Discovery]:
    """The same as a worker does it: in a fork of the process that holds CrewAI."""

    async def describe(project: Project, then: Callable[[], None], **facts: Any) -> Discovery:
        template = await Template.begin(project, storage=tmp_path_factory.mktemp("storage"), **facts)
        try:
            if facts["isolation"] is None and template.isolation != "namespace":
                pytest.skip("this kernel grants no PID namespaces to this user")
            lines = await template.describe()
            then()
            return registry.discovered(project, lines)
        finally:
            await template.close()

    def looked(
        target: Path,
        *,
        seconds: float = 60,
        secrets: tuple[str, ...] = (),
        isolation: str = "namespace",
        then: Callable[[], None] = lambda: None,
    ) -> Discovery:
        """`then` is called while the process that holds CrewAI still lives."""
        project = registry.locate(str(target), None)
        # Nothing forces namespaces; None is where they are taken if they can be.
        wanted = None if isolation == "namespace" else isolation
        described = describe(project, then, secrets=secrets, import_seconds=seconds, isolation=wanted)
        with ThreadPoolExecutor(1) as beside_the_tests_own_loop:
            return beside_the_tests_own_loop.submit(asyncio.run, described).result()

    return looked
