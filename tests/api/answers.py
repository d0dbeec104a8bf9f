"""What the API answers, for tests of its resources."""

from __future__ import annotations

from typing import Any

import httpx


def told(answer: httpx.Response, status: int = 200) -> Any:
    """The body of a good answer."""
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem. Every refusal is one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = dict(answer.json())
    assert problem["status"] == status
    return problem


def field_of(problem: dict[str, Any]) -> str | None:
    """Which field is wrong, however that was found out. None: the problem names none."""
    if "faults" in problem:
        (fault,) = problem["faults"]
        return str(fault["field"]).partition(".")[0]
    return problem.get("field")
