"""Whatever a flow does, its outcome is true and the template goes on serving."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from flowledger.domain.status import Status
from tests.runner.conftest import Runner

DEATHS = {
    "sys.exit": ("ProcessExited", "exit status 3 before the flow returned", "3"),
    "sys.exit in words": ("ProcessExited", "exit status 1 before the flow returned", "1"),
    "os._exit": ("ProcessExited", "exit status 4 before the flow returned", "4"),
    "os._exit 0": ("ProcessExited", "exit status 0 before the flow returned", "0"),
    "abort": ("ProcessKilled", "SIGABRT", "signal SIGABRT"),
    "segfault": ("ProcessKilled", "SIGSEGV", "signal SIGSEGV"),
    "kill": ("ProcessKilled", "out-of-memory", "signal SIGKILL"),
    "recursion": ("RecursionError", "maximum recursion depth", "1"),
    "raises": ("house.faults.WithoutAnswer", "nobody knows", "1"),
    "interrupt": ("KeyboardInterrupt", "", "1"),
}


@pytest.fixture(autouse=True)
async def template_goes_on(flow: Runner) -> Any:
    yield
    assert (await flow("house.plain:Steps")).status is Status.COMPLETED


@pytest.mark.parametrize("how", DEATHS)
async def test_each_way_to_die_is_told_apart(flow: Runner, how: str) -> None:
    outcome = await flow("house.faults:Faulty", {"how": how})
    error_type, message, exit_status = DEATHS[how]
    assert outcome.status is Status.FAILED
    assert outcome.error_type == error_type
    assert message in (outcome.error_message or "")
    assert outcome.metadata["exit_status"] == exit_status


async def test_error_keeps_the_users_frames_its_cause_and_the_state_so_far(flow: Runner) -> None:
    outcome = await flow("house.faults:Faulty", {"how": "raises"})
    stack = outcome.error_stack or ""
    assert "KeyError: 'missing'" in stack
    assert "direct cause" in stack
    assert 'raise WithoutAnswer("nobody knows")' in stack
    assert "return FAULTS[self.state" in stack
    assert "site-packages" not in stack
    assert "frames left out" in stack
    assert outcome.output_state["state"]["reached"] == "first"


async def test_stack_tells_only_what_the_flow_did_and_not_how_crewai_started_it(flow: Runner) -> None:
    outcome = await flow("house.faults:Faulty", {"how": "recursion"})
    assert "no running event loop" not in (outcome.error_stack or "")
    assert (outcome.error_stack or "").startswith("Traceback")


async def test_sys_exit_keeps_the_place_it_was_called_from(flow: Runner) -> None:
    outcome = await flow("house.faults:Faulty", {"how": "sys.exit"})
    assert "sys.exit(3)" in (outcome.error_stack or "")


async def test_crash_leaves_its_stack_in_the_log(flow: Runner) -> None:
    await flow("house.faults:Faulty", {"how": "segfault"})
    assert "Segmentation fault" in flow.recording.text("stderr")


async def test_long_error_is_clamped_and_its_true_length_kept(flow: Runner) -> None:
    outcome = await flow("house.faults:Faulty", {"how": "long type"})
    assert len(outcome.error_type or "") == 100
    assert outcome.metadata["clamped"]["error_type"].endswith("E" * 300)
    assert outcome.metadata["clamped"]["error_message"]["bytes"] == 50_000


RESULTS: dict[str, Any] = {
    "bytes": {"__bytes__": "/wA="},
    "nan": [None, None, None],
    "nul": "ab",
    "surrogate": "a�b",
    "cycle": ["<cycle>"],
}


@pytest.mark.parametrize("what", RESULTS)
async def test_result_that_postgres_would_refuse_is_changed_and_the_change_counted(flow: Runner, what: str) -> None:
    outcome = await flow("house.faults:Returning", {"what": what})
    assert outcome.status is Status.COMPLETED, outcome
    assert outcome.output_state["result"] == RESULTS[what]
    assert outcome.metadata["output_changes"]


@pytest.mark.parametrize("what", ["lock", "deep", "huge int", "function", "exception", "50 MB"])
async def test_any_result_completes_with_storable_json(flow: Runner, what: str) -> None:
    outcome = await flow("house.faults:Returning", {"what": what})
    assert outcome.status is Status.COMPLETED, outcome
    assert len(json.dumps(outcome.output_state)) <= 1_048_576


async def test_huge_result_is_kept_as_preview_with_size_and_hash(flow: Runner) -> None:
    outcome = await flow("house.faults:Returning", {"what": "50 MB"})
    assert outcome.output_state["truncated"] is True
    assert outcome.output_state["bytes"] > 50_000_000
    assert outcome.metadata["output_left_out"] == {
        "bytes": outcome.output_state["bytes"],
        "sha256": outcome.output_state["sha256"],
    }


async def test_generator_result_fails_as_crewai_fails_it(flow: Runner) -> None:
    outcome = await flow("house.faults:Returning", {"what": "generator"})
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "TypeError")


async def test_closed_stdout_does_not_lose_the_outcome(flow: Runner) -> None:
    outcome = await flow("house.faults:ClosesStdout")
    assert (outcome.status, outcome.output_state["result"]) == (Status.COMPLETED, "still here")
    assert flow.recording.text("stdout") == "before\n"


async def test_closing_everybodys_descriptors_ends_in_a_true_outcome(flow: Runner) -> None:
    """The event loop's own are among them: whether it notices, or sleeps for ever, is a race."""
    outcome = await flow("house.faults:Faulty", {"how": "close all"}, timeout_seconds=3, grace_seconds=0.5)
    assert outcome.status in (Status.FAILED, Status.TIMEOUT)
    assert outcome.status is Status.TIMEOUT or "closed a descriptor" in flow.recording.text("stderr")


async def test_garbage_in_our_pipe_fails_the_run_and_says_why(flow: Runner) -> None:
    outcome = await flow("house.faults:Faulty", {"how": "write frames"})
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "FramesUnreadable")


async def test_hundred_megabytes_of_print_keep_head_and_tail(flow: Runner) -> None:
    outcome = await flow("house.faults:Prints")
    text = flow.recording.text("stdout")
    assert outcome.status is Status.COMPLETED
    assert text.startswith("HEAD\n")
    assert text.endswith("TAIL é\n")
    assert len(text) < 70_000
    assert outcome.metadata["log_bytes_dropped"] > 99_000_000


async def test_flow_that_wanders_off_leaves_the_template_where_it_was(flow: Runner) -> None:
    assert (await flow("house.faults:Wanders")).output_state["result"] == "/"
    facts = (await flow("house.faults:Environment")).output_state["result"]
    assert facts["cwd"] != "/"
    assert "WANDERED" not in facts["environ"]
    assert "PATH" in facts["environ"]


async def test_state_with_required_field_is_built_from_the_inputs(flow: Runner) -> None:
    outcome = await flow("house.faults:Required", {"customer": "Ada", "amount": "5"})
    assert (outcome.status, outcome.output_state["result"]) == (Status.COMPLETED, "Ada 5"), outcome


async def test_missing_required_field_fails_with_pydantics_message(flow: Runner) -> None:
    outcome = await flow("house.faults:Required", {"amount": 5})
    assert outcome.error_type == "pydantic_core._pydantic_core.ValidationError"
    assert "customer" in (outcome.error_message or "")
    assert outcome.began_after_ms is None


async def test_question_without_anyone_to_answer_fails_at_once_and_says_what_to_do(flow: Runner) -> None:
    outcome = await flow("house.faults:Asks")
    assert outcome.error_type == "flowledger.runner.child.HumanNeeded"
    assert "Flow.ask() in question()" in (outcome.error_message or "")
    assert "input_provider" in (outcome.error_message or "")


async def test_trigger_payload_reaches_the_start_method(flow: Runner) -> None:
    outcome = await flow("house.faults:Triggered", {"crewai_trigger_payload": {"from": "a webhook"}})
    assert outcome.output_state["result"] == {"from": "a webhook"}


async def test_unknown_entry_points_fail_with_their_own_error(flow: Runner) -> None:
    assert (await flow("house.nowhere:Flow")).error_type == "ModuleNotFoundError"
    assert (await flow("house.plain:Nowhere")).error_type == "AttributeError"
    assert (await flow("nowhere.yaml")).error_type == "FileNotFoundError"


async def test_returned_flow_is_completed_though_its_threads_do_not_end(flow: Runner) -> None:
    begun = time.monotonic()
    outcome = await flow("house.faults:Late")
    assert (outcome.status, outcome.output_state["result"]) == (Status.COMPLETED, "returned")
    assert time.monotonic() - begun < 4


async def test_flow_sees_no_secret_and_only_itself(flow: Runner) -> None:
    facts = (await flow("house.faults:Environment")).output_state["result"]
    assert facts["environ"]["GREETING"] == "hello"
    assert "a-long-s3cret-word-of-the-ledger" not in json.dumps(facts)
    assert [name for name in facts["environ"] if name.startswith("FLOWLEDGER_")] == ["FLOWLEDGER_RUN"]
    assert facts["stdin"] == ""
    assert sorted(facts["processes"]) == ["1", "2"]
