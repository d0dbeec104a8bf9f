"""Speaks to a flowledger server over HTTP: `Client` for whoever waits, `AsyncClient` for asyncio.

It shares `flowledger.domain` and `flowledger.errors` with the server and nothing else, so that it runs where no
database is.
"""

from flowledger.client.answers import (
    CancelAnswer,
    Cancellation,
    Comparison,
    Costs,
    ErrorGroup,
    ErrorGroups,
    ExecutionPage,
    FlowPage,
    ListedFlow,
    MadeToken,
    Spans,
    Spent,
    States,
    WholeExecution,
    WholeFlow,
)
from flowledger.client.asynchronous.client import AsyncClient
from flowledger.client.synchronous.client import Client
from flowledger.domain.execution import Transition

__all__ = [
    "AsyncClient",
    "CancelAnswer",
    "Cancellation",
    "Client",
    "Comparison",
    "Costs",
    "ErrorGroup",
    "ErrorGroups",
    "ExecutionPage",
    "FlowPage",
    "ListedFlow",
    "MadeToken",
    "Spans",
    "Spent",
    "States",
    "Transition",
    "WholeExecution",
    "WholeFlow",
]
