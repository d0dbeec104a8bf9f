"""Projects on disk for the registry's tests, and one look at each that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flowledger import registry
from flowledger.domain.flow import Discovery
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
