"""What it costs a worker to serve a project, and to serve it again after a change: imports of CrewAI, counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(180)

WATCHES_CREWAI = """
import importlib.util, os, sys

class Watches:
    def find_spec(self, name, path=None, target=None):
        if name != "crewai":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        original = spec.loader.exec_module
        def watched(module):
            with open({imports!r}, "a") as imports:
                imports.write(f"{{os.getpid()}}\\n")
            {besides}
            original(module)
        spec.loader.exec_module = watched
        return spec

sys.meta_path.insert(0, Watches())
"""
STARTS_A_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"

FLOW = """
from crewai.flow import Flow, start

class Says(Flow):
    @start()
    def go(self):
        return "old"
"""


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    """A line for each import of CrewAI."""
    return tmp_path / "imports"


@pytest.fixture
def product(postgres: EmbeddedPostgres, tmp_path: Path) -> Product:
    project = tmp_path / "project"
    project.mkdir()
    (project / "says.py").write_text(FLOW)
    return emptied(postgres, project)


@contextmanager
def worker(
    product: Product, imports: Path, monkeypatch: pytest.MonkeyPatch, besides: str = "pass"
) -> Iterator[WorkerProcess]:
    """With every interpreter of the project watched."""
    watch = imports.parent / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCHES_CREWAI.format(imports=str(imports), besides=besides))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(watch), os.environ.get("PYTHONPATH")))))
    with product.worker(log=imports.parent / "log", slots=1, poll_seconds=0.5) as worker:
        yield worker


def _counted(imports: Path) -> int:
    return len(imports.read_text().splitlines())


def _said(product: Product) -> object:
    return product.ended(product.kickoff("says"))["output_state"]["result"]


def test_a_change_is_served_without_importing_crewai_again(
    product: Product, imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(product, imports, monkeypatch) as serving:
        assert _counted(imports) == 1, "to describe the project and to load it"
        assert _said(product) == "old"
        (product.project / "says.py").write_text(FLOW.replace("old", "young") + FLOW.replace("Says", "Adds"))
        (reloaded,) = wait_for(lambda: serving.facts("project_reloaded"))
        assert sorted(reloaded["flows"]) == ["adds", "says"]
        assert _said(product) == "young"
        assert _counted(imports) == 1
        assert not serving.facts("project_described_afresh")
        assert product.run("flows", "list").returncode == 0
        assert _counted(imports) == 2, "without a worker, a look at the project imports it: the watch counts"


def test_a_crewai_that_starts_threads_is_imported_by_whoever_looks_at_the_project(
    product: Product, imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(product, imports, monkeypatch, besides=STARTS_A_THREAD) as serving:
        assert serving.facts("worker_ready")[0]["flows"] == ["says"]
        (told,) = serving.facts("project_described_afresh")
        assert "threads" in told["reason"]
        assert _said(product) == "old"
