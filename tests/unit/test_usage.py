"""Each token is billed once and to the last digit, and a sum never passes off the unknown as zero."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowledger.domain.usage import CallStatus, LlmCall, Price, Total, Usage, cost, worst_cost
from flowledger.errors import InvalidInput

AT = datetime(2026, 11, 1, tzinfo=UTC)
MINI = Price(
    input=Decimal("0.15"), output=Decimal("0.6"), cached_input=Decimal("0.075"), source="genai-prices", version="0.2.3"
)
SONNET = Price(
    input=Decimal(3),
    output=Decimal(15),
    cached_input=Decimal("0.3"),
    cache_write=Decimal("3.75"),
    source="genai-prices",
    version="0.2.3",
)

tokens = st.integers(min_value=0, max_value=2**53)
amounts = st.decimals(min_value=0, max_value=10_000, allow_nan=False, allow_infinity=False, places=12)
prices = st.builds(
    Price,
    input=amounts,
    output=amounts,
    source=st.just("team"),
    version=st.just("1"),
    cached_input=st.none() | amounts,
    cache_write=st.none() | amounts,
    reasoning=st.none() | amounts,
    call=amounts,
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, written, fresh = draw(tokens), draw(tokens), draw(tokens)
    reasoning, spoken = draw(tokens), draw(tokens)
    return Usage(cached + written + fresh, cached, written, reasoning + spoken, reasoning)


def call(**facts: Any) -> LlmCall:
    known = {"number": 1, "call_id": "c", "model": "gpt-4o-mini", "provider": "openai", "started_at": AT}
    return LlmCall(**{**known, "status": CallStatus.COMPLETED, "usage": Usage(100, 0, 0, 10, 0), **facts})


def test_cached_input_and_cache_writes_are_taken_out_of_the_input_before_it_is_priced() -> None:
    assert cost(Usage(1000, 400, 0, 100, 0), MINI) == Decimal("0.00018")
    assert cost(Usage(1000, 400, 100, 100, 0), SONNET) == Decimal("0.003495")


def test_class_without_a_price_of_its_own_is_billed_as_its_whole() -> None:
    plain = Price(input=Decimal(1), output=Decimal(2), source="team", version="1")
    assert cost(Usage(1_000_000, 400_000, 100_000, 1_000_000, 900_000), plain) == Decimal(3)
    dear_reasoning = Price(input=Decimal(1), output=Decimal(2), reasoning=Decimal(3), source="team", version="1")
    assert cost(Usage(0, 0, 0, 1_000_000, 500_000), dear_reasoning) == Decimal("2.5")


def test_call_that_has_a_price_itself_pays_it_without_any_token() -> None:
    searching = Price(input=Decimal(1), output=Decimal(1), call=Decimal("0.005"), source="team", version="1")
    assert cost(Usage(), searching) == Decimal("0.005")


@given(usages(), prices)
def test_cost_is_exact(usage: Usage, price: Price) -> None:
    fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    cached = price.input if price.cached_input is None else price.cached_input
    written = price.input if price.cache_write is None else price.cache_write
    reasoning = price.output if price.reasoning is None else price.reasoning
    expected = (
        fresh * Fraction(price.input)
        + usage.cached_input_tokens * Fraction(cached)
        + usage.cache_write_tokens * Fraction(written)
        + (usage.output_tokens - usage.reasoning_tokens) * Fraction(price.output)
        + usage.reasoning_tokens * Fraction(reasoning)
    ) / 1_000_000 + Fraction(price.call)
    assert Fraction(cost(usage, price)) == expected


@given(usages(), prices)
def test_no_split_into_classes_costs_more_than_the_worst(usage: Usage, price: Price) -> None:
    assert cost(usage, price) <= worst_cost(usage.input_tokens, usage.output_tokens, price)


@given(st.lists(usages(), max_size=5), prices)
def test_sum_of_costs_loses_no_digit(spent: list[Usage], price: Price) -> None:
    total = sum((Total.of(call(usage=usage), price) for usage in spent), Total())
    assert total.cost_usd is not None
    assert Fraction(total.cost_usd) == sum((Fraction(cost(usage, price)) for usage in spent), Fraction(0))


@pytest.mark.parametrize("amount", [0.15, Decimal("NaN"), Decimal("Infinity"), Decimal(-1), "0.15"])
def test_price_that_is_no_exact_amount_is_refused(amount: Any) -> None:
    with pytest.raises(InvalidInput, match="price input"):
        Price(input=amount, output=Decimal(1), source="team", version="1")


def test_no_calls_cost_nothing() -> None:
    assert (Total().tokens, Total().cost_usd, Total().calls) == (0, Decimal(0), 0)


def test_sum_with_an_unpriced_call_has_no_cost_names_the_model_and_keeps_what_is_known() -> None:
    total = Total.of(call(), MINI) + Total.of(call(model="house-llm"), None)
    assert total.cost_usd is None
    assert total.unpriced_models == {"house-llm"}
    assert total.priced_usd == Decimal("0.000021")
    assert total.tokens == 220
    assert total.prices == {"genai-prices 0.2.3"}


def test_completed_call_whose_tokens_nobody_reported_is_unknown_and_not_free() -> None:
    alone = Total.of(call(usage=None), MINI)
    assert (alone.tokens, alone.cost_usd, alone.unreported) == (None, None, 1)
    beside_another = alone + Total.of(call(), MINI)
    assert (beside_another.tokens, beside_another.cost_usd) == (110, None)
    assert beside_another.unreported_models == {"gpt-4o-mini"}


def test_failed_call_is_counted_as_a_call_and_leaves_the_sum_known() -> None:
    total = Total.of(call(status=CallStatus.FAILED, usage=None), MINI) + Total.of(call(), MINI)
    assert (total.calls, total.failed, total.tokens, total.cost_usd) == (2, 1, 110, Decimal("0.000021"))


def test_failed_call_that_reported_tokens_is_billed() -> None:
    assert Total.of(call(status=CallStatus.FAILED), MINI).cost_usd == Decimal("0.000021")


def test_call_that_was_cut_off_leaves_the_sum_of_what_had_arrived() -> None:
    cut_off = Total.of(call(status=CallStatus.UNKNOWN, usage=None), MINI)
    assert (cut_off.tokens, cut_off.cost_usd) == (None, None)
    total = cut_off + Total.of(call(), MINI)
    assert (total.unended, total.tokens, total.cost_usd) == (1, 110, Decimal("0.000021"))


statuses = st.sampled_from(CallStatus)
calls = st.builds(
    lambda status, usage, model, price: Total.of(call(status=status, usage=usage, model=model), price),
    statuses,
    st.none() | usages(),
    st.sampled_from(["a", "b"]),
    st.none() | prices,
)


@given(st.lists(calls, min_size=1, max_size=6).flatmap(lambda parts: st.tuples(st.just(parts), st.permutations(parts))))
def test_order_of_the_calls_never_changes_the_sum(orders: tuple[list[Total], list[Total]]) -> None:
    there, back = orders
    assert reduce(add, there) == reduce(add, back)
