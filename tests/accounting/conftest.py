"""A project of flows that spend, one warm template for it, the stub as their model, and prices known to the digit."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flowledger.domain.project import Project
from flowledger.runner.process import Template
from tests.accounting.spender import EXAMPLES, Spender

sys.path.append(str(EXAMPLES))

from stub_llm import StubServer, environment

ROOT = Path(__file__).parent / "flows"
MODULES = ("spender.direct", "spender.failing", "spender.teams", "spender.stubborn", "spender.told")


@pytest.fixture(scope="session")
def stub_llm() -> Iterator[StubServer]:
    server = StubServer()
    with server:
        yield server


@pytest.fixture(scope="session")
async def spending_template(stub_llm: StubServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Template]:
    project = Project(ROOT, Path(sys.executable), (ROOT / "src",), MODULES)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(stub_llm.url).items():
            patch.setitem(os.environ, name, value)
        template = await Template.start(
            project, secrets=[], storage=tmp_path_factory.mktemp("spending"), import_seconds=60
        )
    yield template
    await template.close()


@pytest.fixture
def spend(spending_template: Template, stub_llm: StubServer) -> Spender:
    return Spender(spending_template, stub_llm)
