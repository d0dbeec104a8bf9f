"""How a run ended, put together from what was decided, what the child reported and how its process died."""

from __future__ import annotations

import os
import platform
import signal
from collections import Counter
from dataclasses import dataclass, field

from flowledger.domain.budget import Refusal
from flowledger.domain.execution import JsonObject, Outcome
from flowledger.domain.status import Status
from flowledger.runner.account import Account
from flowledger.runner.bounds import Bounds
from flowledger.runner.limits import Decision, ErrorType

_HINTS = {
    "SIGKILL": "Often the kernel's out-of-memory killer: compare peak_memory_bytes with what the machine has.",
    "SIGSEGV": "Native code crashed; the stack is at the end of stderr.",
    "SIGABRT": "Native code gave up; its message and the stack are at the end of stderr.",
    "SIGBUS": "Native code crashed; the stack is at the end of stderr.",
    "SIGTERM": "Something other than flowledger ended it.",
}


@dataclass
class Evidence:
    """What the worker learnt about a run."""

    isolation: str
    start: str
    crewai_version: str
    python_version: str
    bounds: Bounds = field(default_factory=Bounds)
    report: JsonObject | None = None
    refused_before: Refusal | None = None
    """The LLM call that was refused before the report: the flow may have swallowed that."""
    state_so_far: JsonObject | None = None
    """What a run that is killed leaves: its state after the last step that it ended."""
    frames_broken: bool = False
    wait_status: int | None = None
    peak_memory_bytes: int | None = None
    peak_processes: int | None = None
    exceeded: ErrorType | None = None
    lease_expired: bool = False
    unkillable: bool = False
    began_after_ms: int | None = None
    failed_steps: Counter[str] = field(default_factory=Counter)
    dropped_log_bytes: int = 0
    dropped_events: int = 0


def conclude(evidence: Evidence, decision: Decision | None, account: Account) -> Outcome:
    """The supervisor's decision comes first, then the child's report, then the way its process died."""
    report = evidence.report or {}
    if decision is not None:
        verdict = _Verdict(decision.status, decision.error_type, decision.reason)
    elif evidence.lease_expired:
        verdict = _Verdict(Status.FAILED, ErrorType.LEASE_LOST, "no renewal of the lease reached the flow's processes")
    elif report.get("kind") == "result":
        verdict = _Verdict(Status.COMPLETED)
    elif report.get("stopped"):
        # Nobody decided to end the run, so this was a call that there was room for later only, and that cannot wait.
        verdict = _Verdict(Status.FAILED, ErrorType.BUDGET_EXCEEDED, report["error_message"])
    elif report.get("kind") == "error" and "exit_status" not in report:
        verdict = _Verdict(Status.FAILED, report["error_type"], report["error_message"])
    elif evidence.exceeded is not None:
        verdict = _exceeded(evidence, evidence.exceeded)
    else:
        verdict = _died(evidence, report)
    left = report or evidence.state_so_far or {}
    stack = None if verdict.status is Status.COMPLETED or report.get("stopped") else report.get("error_stack")
    return Outcome(
        status=verdict.status,
        output_state=left.get("output"),
        error_type=verdict.error_type,
        error_message=verdict.message,
        error_stack=stack,
        token_count=account.token_count,
        cost_usd=account.cost_usd,
        began_after_ms=evidence.began_after_ms,
        metadata={**_metadata(evidence, left), **account.as_metadata(), **_failure(evidence, verdict, report)},
    )


@dataclass(frozen=True)
class _Verdict:
    status: Status
    error_type: str | None = None
    message: str | None = None


def _exceeded(evidence: Evidence, error: ErrorType) -> _Verdict:
    if error is ErrorType.MEMORY_LIMIT:
        had, limit = _size(evidence.peak_memory_bytes), _size(evidence.bounds.memory_bytes)
        return _Verdict(Status.FAILED, error, f"the run took {had} of memory; its limit is {limit}")
    had, limit = f"{evidence.peak_processes:,}", f"{evidence.bounds.processes:,}"
    return _Verdict(Status.FAILED, error, f"the run had {had} processes; its limit is {limit}")


def _size(number: int | None) -> str:
    return f"{(number or 0) / 1_048_576:,.0f} MiB"


def _died(evidence: Evidence, report: JsonObject) -> _Verdict:
    """The process is gone and nobody said that the flow returned."""
    if evidence.frames_broken:
        return _Verdict(
            Status.FAILED,
            ErrorType.FRAMES_UNREADABLE,
            "the flow wrote into a descriptor that it had not opened; what it reported cannot be read",
        )
    if evidence.wait_status is None:
        return _Verdict(
            Status.FAILED,
            ErrorType.PROCESS_KILLED,
            "all processes of the run were killed from outside. " + _HINTS["SIGKILL"],
        )
    code = os.waitstatus_to_exitcode(evidence.wait_status)
    if code < 0:
        name = _signal_name(-code)
        return _Verdict(
            Status.FAILED, ErrorType.PROCESS_KILLED, f"{name} ended the flow's process. {_HINTS.get(name, '')}".strip()
        )
    status = report.get("exit_status", code)
    return _Verdict(Status.FAILED, ErrorType.PROCESS_EXITED, f"exit status {status} before the flow returned")


def _metadata(evidence: Evidence, left: JsonObject) -> JsonObject:
    optional = {
        "output_changes": left.get("changes"),
        "output_left_out": left.get("left_out"),
        "clamped": left.get("clamped"),
        "log_bytes_dropped": evidence.dropped_log_bytes,
        "events_dropped": evidence.dropped_events,
        "unkillable": evidence.unkillable,
        "peak_processes": evidence.peak_processes,
        "memory_limit_bytes": evidence.bounds.memory_bytes,
        "process_limit": evidence.bounds.processes,
    }
    return {
        "crewai_version": evidence.crewai_version,
        "python_version": evidence.python_version,
        "host": platform.node(),
        "isolation": evidence.isolation,
        "start": evidence.start,
        "exit_status": _exit_status(evidence.wait_status),
        "peak_memory_bytes": evidence.peak_memory_bytes,
        **{name: value for name, value in optional.items() if value},
    }


def _failure(evidence: Evidence, verdict: _Verdict, report: JsonObject) -> JsonObject:
    """Where it failed; of a run that completed, which of its steps did not."""
    if verdict.status is Status.COMPLETED:
        return {"failed_steps": dict(evidence.failed_steps)} if evidence.failed_steps else {}
    if verdict.error_type != report.get("error_type"):
        return {}
    places = {"error_fingerprint": report.get("fingerprint"), "error_place": report.get("place")}
    return {name: place for name, place in places.items() if place}


def _exit_status(wait_status: int | None) -> str | None:
    if wait_status is None:
        return None
    code = os.waitstatus_to_exitcode(wait_status)
    return str(code) if code >= 0 else f"signal {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
