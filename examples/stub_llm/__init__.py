"""A stand-in for OpenAI's chat API: real HTTP, deterministic text, true usage, faults on request. No key, no cost.

`python -m stub_llm` serves until interrupted; `with StubServer() as url:` serves inside a test.
"""

from stub_llm.server import StubServer, environment

__all__ = ["StubServer", "environment"]
