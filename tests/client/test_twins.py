"""There is one client: what is not awaited is made of what is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "synchronous.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("synchronous", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_synchronous_client_is_what_would_be_made_now(script):
    stored = {file.name: file.read_text() for file in script.MADE.glob("*.py")}
    assert stored == script.files(), "run `make docs`"


def test_nothing_of_it_waits(script):
    words = ("async ", "await ", "asyncio", "Async", "aiter", "aclos")
    assert [word for text in script.files().values() for word in words if word in text.partition("\n")[2]] == []


def test_the_words_of_waiting_are_taken_out_and_no_others(script):
    written = (
        'async with aclosing(x) as y:\n    async for z in await y.aiter_sse():\n        pass  # AsyncClient, "wait"\n'
    )
    assert (
        script.synchronous(written)
        == 'with closing(x) as y:\n    for z in y.iter_sse():\n        pass  # Client, "wait"\n'
    )
