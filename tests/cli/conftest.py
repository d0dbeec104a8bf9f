"""A ledger for the commands, and one worker for those that want one at work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Product:
    project = tmp_path_factory.mktemp("project") / "hostile"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
    # The commands are not about broken modules; one that wants them adds its own.
    (project / "src/hostile/broken.py").unlink()
    (project / "src/hostile/threads.py").unlink()
    return emptied(postgres, project)


@pytest.fixture(scope="module")
def worker(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with product.worker(log=tmp_path_factory.mktemp("worker") / "log", slots=4, grace_seconds=1) as worker:
        yield worker
