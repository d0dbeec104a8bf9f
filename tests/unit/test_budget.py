"""What was spent and reserved never passes the limit, in whatever order parallel calls begin and end."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from flowledger.domain.budget import (
    Budget,
    PromptSize,
    Reason,
    Refusal,
    Reservation,
    Spending,
    WorstCase,
    most_input_tokens,
    most_output_tokens,
)
from flowledger.domain.reach import OnReach
from flowledger.domain.usage import Price, Usage, cost, worst_cost
from flowledger.errors import InvalidInput

MINI = Price(input=Decimal("0.15"), output=Decimal("0.6"), cached_input=Decimal("0.075"), source="team", version="1")


def worst(usd: str | None = "0.10", tokens: int = 100, model: str = "m") -> WorstCase:
    return WorstCase(model, tokens, 0, None if usd is None else Decimal(usd))


def granted(answer: Reservation | Refusal) -> Reservation:
    assert isinstance(answer, Reservation), answer
    return answer


def refused(answer: Reservation | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def test_parallel_calls_cannot_pass_together_through_the_last_dollar() -> None:
    spending = Spending(Budget(usd=Decimal("0.25")))
    answers = [spending.reserve(worst("0.10")) for _ in range(8)]
    assert [type(answer) for answer in answers] == [Reservation] * 2 + [Refusal] * 6
    assert spending.reserved_usd == Decimal("0.20")


def test_call_that_only_waits_for_others_is_told_so_and_fits_once_they_were_cheaper() -> None:
    spending = Spending(Budget(usd=Decimal("0.25")))
    running = [granted(spending.reserve(worst("0.10"))) for _ in range(2)]
    assert not refused(spending.reserve(worst("0.10"))).is_final
    spending.settle(running[0], Usage(10), Decimal("0.01"))
    granted(spending.reserve(worst("0.10")))


def test_call_that_can_never_fit_is_refused_for_good() -> None:
    spending = Spending(Budget(tokens=100), spent_tokens=50)
    refusal = refused(spending.reserve(worst(tokens=51)))
    assert (refusal.unit, refusal.spent, refusal.limit, refusal.is_final) == ("tokens", 50, 100, True)


def test_call_that_takes_exactly_what_is_left_passes() -> None:
    spending = Spending(Budget(usd=Decimal("0.30"), tokens=300), spent_usd=Decimal("0.20"), spent_tokens=200)
    granted(spending.reserve(worst("0.10", 100)))


def test_both_limits_hold_at_once() -> None:
    spending = Spending(Budget(usd=Decimal(1), tokens=150))
    granted(spending.reserve(worst("0.10", 100)))
    assert refused(spending.reserve(worst("0.10", 100))).unit == "tokens"


def test_budget_without_limits_lets_everything_through_and_counts_it() -> None:
    spending = Spending(Budget())
    spending.settle(granted(spending.reserve(worst("0.10"))), Usage(90), Decimal("0.09"))
    assert (spending.spent_usd, spending.spent_tokens, spending.is_reached) == (Decimal("0.09"), 90, False)


def test_budget_of_nothing_lets_no_call_through() -> None:
    assert Spending(Budget(usd=Decimal(0))).is_reached
    refused(Spending(Budget(usd=Decimal(0))).reserve(worst("0.01")))


def test_model_without_a_price_is_refused_under_a_budget_in_usd_and_not_under_one_in_tokens() -> None:
    refusal = refused(Spending(Budget(usd=Decimal(1))).reserve(worst(None, model="house-llm")))
    assert (refusal.reason, refusal.is_final) == (Reason.UNPRICED, True)
    assert str(refusal) == (
        "house-llm has no price, so the execution's budget of $1.00 cannot be kept to: "
        "set its price, or give the budget in tokens"
    )
    granted(Spending(Budget(tokens=1000)).reserve(worst(None)))


def test_refusal_says_what_was_asked_spent_reserved_and_allowed() -> None:
    spending = Spending(Budget(usd=Decimal("0.25")), spent_usd=Decimal("0.05"))
    granted(spending.reserve(worst("0.10")))
    assert str(refused(spending.reserve(WorstCase("gpt-4o", 1200, 4096, Decimal("0.15"))))) == (
        "a call of gpt-4o may take $0.15 (at most 1,200 tokens in, 4,096 out), with $0.05 spent and $0.10 set aside"
        " of the execution's budget of $0.25; a max_tokens on the LLM makes it less"
    )


def test_refusal_by_a_budget_that_others_spend_from_tells_no_amount_of_it() -> None:
    worst = WorstCase("gpt-4o", 1200, 4096, Decimal("0.15"))
    facts = (worst, Decimal(3), Decimal(2), Decimal(4))
    budget = "the month's budget of this flow"
    full = Refusal(Reason.REACHED, "usd", *facts, is_final=True, budget=budget, is_shared=True)
    unpriced = replace(full, reason=Reason.UNPRICED)
    assert str(full).startswith("a call of gpt-4o may take $0.15")
    for told in (str(full), str(unpriced)):
        assert "the month's budget of this flow" in told
        assert not any(amount in told for amount in ("$3", "$2", "$4"))


def test_call_whose_tokens_nobody_reported_keeps_its_reservation_as_an_estimate() -> None:
    spending = Spending(Budget(usd=Decimal(1)))
    spending.settle(granted(spending.reserve(worst("0.10", 100))), None, None)
    assert (spending.spent_usd, spending.estimated_usd) == (Decimal("0.10"), Decimal("0.10"))
    assert (spending.spent_tokens, spending.estimated_tokens, spending.estimated_calls) == (100, 100, 1)
    assert spending.reserved_usd == 0


def test_call_with_tokens_and_no_cost_keeps_its_reserved_dollars_as_an_estimate() -> None:
    spending = Spending(Budget(usd=Decimal(1)))
    spending.settle(granted(spending.reserve(worst("0.10", 100))), Usage(40), None)
    assert (spending.spent_usd, spending.estimated_usd) == (Decimal("0.10"), Decimal("0.10"))
    assert (spending.spent_tokens, spending.estimated_tokens, spending.estimated_calls) == (40, 0, 1)


def test_call_that_was_never_billed_gives_its_room_back() -> None:
    spending = Spending(Budget(usd=Decimal("0.10")))
    spending.release(granted(spending.reserve(worst("0.10"))))
    assert spending.spent_usd == 0
    granted(spending.reserve(worst("0.10")))


def test_end_of_a_call_that_is_told_twice_counts_once() -> None:
    spending = Spending(Budget(usd=Decimal(1)))
    reservation = granted(spending.reserve(worst("0.10")))
    assert spending.settle(reservation, Usage(10), Decimal("0.04"))
    assert not spending.settle(reservation, Usage(10), Decimal("0.04"))
    assert not spending.release(reservation)
    assert (spending.spent_usd, spending.reserved_usd) == (Decimal("0.04"), Decimal(0))


def test_call_that_took_more_than_it_reserved_is_counted_whole_and_ends_the_budget() -> None:
    spending = Spending(Budget(usd=Decimal("0.10")))
    spending.settle(granted(spending.reserve(worst("0.10"))), Usage(10), Decimal("0.12"))
    assert spending.spent_usd == Decimal("0.12")
    assert spending.is_reached
    assert refused(spending.reserve(worst("0.00"))).is_final


def test_budget_that_warns_lets_the_call_through_and_says_what_was_passed() -> None:
    spending = Spending(Budget(usd=Decimal("0.15"), on_reach=OnReach.WARN))
    assert granted(spending.reserve(worst("0.10"))).warning is None
    warned = granted(spending.reserve(worst("0.10")))
    assert warned.warning is not None
    assert warned.warning.reason is Reason.REACHED
    unpriced = granted(spending.reserve(worst(None)))
    assert unpriced.warning is not None
    spending.settle(unpriced, Usage(10), None)
    assert (spending.unpriced_calls, spending.spent_usd) == (1, Decimal(0))


@pytest.mark.parametrize("given", [{"usd": 0.5}, {"usd": Decimal(-1)}, {"usd": Decimal("NaN")}, {"tokens": -1}])
def test_budget_that_is_no_exact_amount_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="budget in"):
        Budget(**given)


class ParallelCalls(RuleBasedStateMachine):
    """Calls begin, end, break off and stay silent in any order; none takes more than it reserved."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.spending = Spending(Budget(usd=Decimal("1.00"), tokens=10_000))
        self.open: dict[int, Reservation] = {}

    @rule(target=running, cents=st.integers(0, 60), tokens=st.integers(0, 6_000))
    def begin(self, cents: int, tokens: int) -> Reservation | None:
        answer = self.spending.reserve(WorstCase("m", tokens, 0, Decimal(cents) / 100))
        if isinstance(answer, Refusal):
            return None
        self.open[answer.number] = answer
        return answer

    @rule(call=consumes(running), share=st.fractions(0, 1))
    def end(self, call: Reservation | None, share: Any) -> None:
        if call is not None and call.worst.usd is not None:
            usd = call.worst.usd * int(share * 1000) / 1000
            self.spending.settle(call, Usage(int(call.worst.tokens * share)), usd)
            del self.open[call.number]

    @rule(call=consumes(running))
    def end_in_silence(self, call: Reservation | None) -> None:
        if call is not None:
            self.spending.settle(call, None, None)
            del self.open[call.number]

    @rule(call=consumes(running))
    def break_off(self, call: Reservation | None) -> None:
        if call is not None:
            self.spending.release(call)
            del self.open[call.number]

    @invariant()
    def nothing_passes_the_limit(self) -> None:
        assert self.spending.spent_usd + self.spending.reserved_usd <= Decimal("1.00")
        assert self.spending.spent_tokens + self.spending.reserved_tokens <= 10_000

    @invariant()
    def what_is_reserved_is_what_runs(self) -> None:
        assert self.spending.reserved_usd == sum((call.worst.usd or Decimal(0)) for call in self.open.values())
        assert self.spending.reserved_tokens == sum(call.worst.tokens for call in self.open.values())

    @invariant()
    @precondition(lambda self: not self.open)
    def no_refusal_waits_for_calls_that_do_not_run(self) -> None:
        answer = self.spending.reserve(WorstCase("m", 10_000, 0, Decimal(1)))
        if isinstance(answer, Refusal):
            assert answer.is_final
        else:
            self.spending.release(answer)


ParallelCalls.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestParallelCalls = ParallelCalls.TestCase


def test_invariant_is_able_to_fail() -> None:
    """Negative control: a book that forgets what is reserved lets two calls through one dollar."""
    machine = ParallelCalls()
    machine.spending.reserve(WorstCase("m", 1, 0, Decimal("0.60")))
    machine.spending.reserved_usd = Decimal(0)
    machine.spending.reserve(WorstCase("m", 1, 0, Decimal("0.60")))
    machine.spending.spent_usd = Decimal("0.60")
    with pytest.raises(AssertionError):
        machine.nothing_passes_the_limit()


# -- The most that a call can use -------------------------------------------------------------------------------------


@given(
    st.builds(
        PromptSize, **dict.fromkeys(("plain", "dense", "messages", "tools", "images", "files"), st.integers(0, 1000))
    )
)
def test_prompt_is_never_estimated_below_a_third_of_its_characters(size: PromptSize) -> None:
    assert most_input_tokens(size, "gpt-4o") * 3 >= size.plain + size.dense


@pytest.mark.parametrize("part", ["dense", "messages", "tools", "images", "files"])
def test_every_part_of_a_prompt_counts(part: str) -> None:
    assert most_input_tokens(PromptSize(**{part: 1}), "gpt-4o") > most_input_tokens(PromptSize(), "gpt-4o")


def test_image_counts_as_the_largest_its_model_bills() -> None:
    one = PromptSize(images=1)
    assert most_input_tokens(one, "gpt-4o-mini-2024-07-18") > 48_000 > most_input_tokens(one, "gpt-4o")


def test_no_prompt_is_larger_than_its_model_takes() -> None:
    assert most_input_tokens(PromptSize(files=30), "gpt-4o", model_maximum=128_000) == 128_000


def test_output_is_bounded_by_the_call_then_by_the_model_then_by_the_setting() -> None:
    assert most_output_tokens(100, 16_384, 8_192) == 100
    assert most_output_tokens(None, 16_384, 8_192) == 16_384
    assert most_output_tokens(None, None, 8_192) == 8_192
    assert most_output_tokens(100, 16_384, 8_192, choices=3) == 300


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.data())
def test_worst_case_is_no_less_than_any_real_use_within_it(most_in: int, most_out: int, data: st.DataObject) -> None:
    real_in, real_out = data.draw(st.integers(0, most_in)), data.draw(st.integers(0, most_out))
    cached = data.draw(st.integers(0, real_in))
    case = WorstCase.of("m", most_in, most_out, MINI)
    assert case.usd == worst_cost(most_in, most_out, MINI)
    assert cost(Usage(real_in, cached, 0, real_out, 0), MINI) <= case.usd
