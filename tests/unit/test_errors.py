"""Every error has words, a code of its own, crosses a pipe whole, and leaves the command line with one exit code."""

from __future__ import annotations

import json
import pickle
import sys
from uuid import UUID

import pytest

from flowledger import errors
from flowledger.cli.exits import Exit, report
from flowledger.domain.execution import Execution
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.errors import FlowledgerError

ENDED = Execution(
    id=UUID(int=1),
    flow_id=UUID(int=2),
    execution_key="GREET-1",
    input_state=None,
    output_state=None,
    status=Status.FAILED,
    error_message="no such lead",
    error_stack=None,
    error_type="LookupError",
    started_at=None,
    completed_at=None,
    duration_ms=None,
    token_count=None,
    cost_usd=None,
    board_meeting_id=None,
    executed_by=None,
    execution_mode=Mode.MANUAL,
    metadata=None,
    flow_key="greet",
)
EVERY = (
    errors.InvalidInput("topic", "must be text", "Give words."),
    errors.FlowNotFound("godo", ("good", "goods")),
    errors.FlowNotFound("godo"),
    errors.ExecutionNotFound("abcd"),
    errors.AmbiguousReference("abcd", ("abcd1", "abcd2")),
    errors.PriceNotFound("gpt-4o", ("one --provider azure",)),
    errors.PriceNotFound("gpt-4o"),
    errors.ProjectNotFound("/here"),
    errors.ProjectUnusable("/here", "no crewai", "Install it."),
    errors.DatabaseUnreachable("localhost:5432/x", "refused"),
    errors.DatabaseBusy("too many connections"),
    errors.SchemaTooOld(0, 1),
    errors.SchemaTooOld(1, 2),
    errors.SchemaTooNew(9, 1),
    errors.ServerTooOld("13.4", "14"),
    errors.SchemaNotOurs(("a table is not ours",)),
    errors.MigrationChanged("0001_initial.sql"),
    errors.EmbeddedPostgresFailed("no room", "Make some."),
    errors.ArchiveFailed("/archive", "no room"),
    errors.PermissionRefused("not you"),
    errors.NotAuthenticated("it carries no bearer token"),
    errors.ScopeRefused(("read",), "run"),
    errors.OriginRefused("https://elsewhere.example"),
    errors.OriginRefused(""),
    errors.RateLimited("500 requests a second", 1),
    errors.KeysUnavailable("https://keys.example", "it does not answer"),
    errors.TokenNotFound("ci"),
    errors.TooManyStreams(16),
    errors.BudgetNotFound(3),
    errors.FeedbackNotAwaited("abcd"),
    errors.TransitionRefused("completed cannot go to running"),
    errors.QueueFull(10_000),
    errors.PriceNotFound("gpt-x"),
    errors.BudgetUsedUp("the day's budget of this flow is used up"),
    errors.ServerUnreachable("http://localhost:8700", "refused"),
    errors.UnexpectedAnswer(500, "internal", "this is a fault of the server's", "", "4711"),
    errors.UnexpectedAnswer(502, "", "the server answered 502", "Look at it."),
    errors.NotCompleted(ENDED),
    errors.ExecutionFailed(ENDED),
    errors.ExecutionCancelled(ENDED),
    errors.ExecutionTimedOut(ENDED),
    errors.StoppedWaiting(ENDED, 1.5),
)
SAID_ALONE = (errors.TransitionRefused,)


def test_no_error_is_forgotten_here() -> None:
    named = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlowledgerError)}
    assert {type(error) for error in EVERY} == named - {FlowledgerError}


def test_codes_are_stable_words_and_no_two_alike() -> None:
    codes = {type(error): error.code for error in EVERY}
    assert len(set(codes.values())) == len(codes)
    assert all(code == code.lower() and " " not in code and code != "error" for code in codes.values())


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_error_says_what_is_wrong_and_what_to_do(error: FlowledgerError) -> None:
    assert error.title
    assert not error.title.endswith(".")
    assert error.title in str(error)
    assert error.hint or isinstance(error, SAID_ALONE)
    assert type(error).__doc__


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_error_crosses_a_pipe_whole(error: FlowledgerError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (vars(again), str(again)) == (vars(error), str(error))


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_error_leaves_with_its_exit_code_in_words_and_in_json(
    error: FlowledgerError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        errors.InvalidInput: Exit.USAGE,
        errors.FlowNotFound: Exit.NOT_FOUND,
        errors.ExecutionNotFound: Exit.NOT_FOUND,
        errors.AmbiguousReference: Exit.NOT_FOUND,
        errors.BudgetNotFound: Exit.NOT_FOUND,
        errors.PriceNotFound: Exit.NOT_FOUND,
        errors.ProjectNotFound: Exit.NOT_FOUND,
        errors.TokenNotFound: Exit.NOT_FOUND,
        errors.NotAuthenticated: Exit.NOT_PERMITTED,
        errors.ScopeRefused: Exit.NOT_PERMITTED,
        errors.OriginRefused: Exit.NOT_PERMITTED,
        errors.PermissionRefused: Exit.NOT_PERMITTED,
        errors.ExecutionFailed: Exit.FAILED,
        errors.ExecutionCancelled: Exit.CANCELLED,
        errors.ExecutionTimedOut: Exit.TIMEOUT,
        errors.StoppedWaiting: Exit.STOPPED_WAITING,
    }.get(type(error), Exit.ERROR)
    monkeypatch.setattr(sys, "argv", ["flowledger", "run"])
    assert report(error) == expected
    words = capsys.readouterr()
    assert words.out == ""
    assert error.title.splitlines()[0] in words.err
    monkeypatch.setattr(sys, "argv", ["flowledger", "run", "--json"])
    assert report(error) == expected
    told = json.loads(capsys.readouterr().err)["error"]
    assert told == {"code": error.code, "message": error.title, "hint": error.hint}


def test_an_execution_that_did_not_complete_is_told_with_flow_key_and_error() -> None:
    told = str(errors.ExecutionFailed(ENDED))
    assert told.startswith("greet failed: execution GREET-1, LookupError: no such lead. ")
    assert str(ENDED.id) in told


def test_fault_of_our_own_is_owned_up_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flowledger"])
    monkeypatch.delenv("FLOWLEDGER_DEBUG", raising=False)
    assert report(RuntimeError("oh")) == Exit.ERROR
    said = capsys.readouterr().err
    assert "RuntimeError: oh" in said
    assert "fault of flowledger's" in said
    assert "Traceback" not in said
