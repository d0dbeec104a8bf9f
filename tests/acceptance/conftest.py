"""One real worker over one copy of the project, for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied


@pytest.fixture(scope="package")
def product(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """An empty ledger and a project of its own, whose files a test may change."""
    project = tmp_path_factory.mktemp("project") / "hostile"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
    return emptied(postgres, project)


@pytest.fixture(scope="package")
def worker(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    log: Path = tmp_path_factory.mktemp("worker") / "log"
    with product.worker(log=log, slots=3, poll_seconds=1, grace_seconds=1) as worker:
        yield worker
