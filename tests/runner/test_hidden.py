"""What belongs to the ledger on disk is out of a flow's sight, as far as the isolation allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowledger.runner.process import Template
from tests.runner.conftest import Runner, project

LOOKS = "house.plain:Looks"


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    directory = tmp_path / "passwords"
    directory.mkdir()
    (directory / "worker").write_text("a password")
    return directory


async def test_a_flow_finds_a_hidden_directory_empty(storage: Path, passwords: Path):
    template = await Template.start(
        project("house.plain"), secrets=(), storage=storage, import_seconds=60, hidden=[passwords]
    )
    try:
        if template.isolation != "namespace":
            pytest.skip("this kernel grants no mount namespaces to this user")
        outcome = await Runner(template)(LOOKS, {"directory": str(passwords)})
    finally:
        await template.close()
    assert outcome.output_state["result"] == []
    assert (passwords / "worker").read_text() == "a password"


async def test_a_directory_that_is_not_hidden_is_seen(flow: Runner, passwords: Path):
    outcome = await flow(LOOKS, {"directory": str(passwords)})
    assert outcome.output_state["result"] == ["worker"]
