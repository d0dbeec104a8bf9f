"""The stub LLM, served for real over HTTP for each test that asks for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

from stub_llm import StubServer  # noqa: E402 - found through the line above


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer()
    with server:
        yield server
