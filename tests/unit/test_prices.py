"""A price is the team's, else a known list's, exact to the digit and named with its source; or it is unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from flowledger.domain.price import TeamPrice
from flowledger.domain.usage import Price, Usage, cost
from flowledger.prices import ModelLimits, Prices, catalogue_file

AT = datetime(2026, 11, 1, tzinfo=UTC)
OURS = Price(input=Decimal(1), output=Decimal(2), source="team", version="2026-10-01")
ENTRY = {"litellm_provider": "snowflake", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}


def catalogue(folder: Path, **entries: dict[str, object]) -> Path:
    path = folder / "catalogue.json"
    path.write_text(json.dumps({name.replace("__", "/"): entry for name, entry in entries.items()}))
    return path


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        ("gpt-4o-mini", "openai", "0.00018"),
        ("gpt-4o-mini-2024-07-18", "openai", "0.00018"),
        ("openai/gpt-4o-mini", "openai", "0.00018"),
        ("gpt-4o", "azure", "0.0030"),
        ("gpt-4o", "azure_openai", "0.0030"),
        ("claude-sonnet-4-5-20250929", "anthropic", "0.00342"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock", "0.003762"),
        ("gemini-2.5-pro", "gemini", "0.00180"),
        ("models/gemini-2.5-pro", "google", "0.00180"),
    ],
)
def test_model_is_found_by_the_name_that_crewai_reports(
    prices: Prices, model: str, provider: str, expected: str
) -> None:
    price = prices.lookup(model, provider, AT, 1000)
    assert price is not None
    assert price.source == "genai-prices"
    assert price.version
    assert cost(Usage(1000, 400, 0, 100, 0), price) == Decimal(expected)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-99", "openai"),
        ("my-gpt-4o-deployment", "azure"),
        ("llama3", "ollama"),
        ("gpt-4o", "hosted_vllm"),
        ("gpt-4o", "unknown"),
        ("meta-llama/llama-3.3-70b-instruct:free", "openrouter"),
        ("", ""),
    ],
)
def test_what_no_list_knows_is_unknown_and_never_zero(prices: Prices, model: str, provider: str) -> None:
    assert prices.lookup(model, provider, AT, 1000) is None
    assert prices.dearest(model, provider, AT, 1000) is None


def test_tier_is_chosen_by_the_whole_input_and_holds_for_all_of_it(prices: Prices) -> None:
    below = prices.lookup("gemini-2.5-pro", "gemini", AT, 200_000)
    above = prices.lookup("gemini-2.5-pro", "gemini", AT, 200_001)
    assert below is not None
    assert above is not None
    assert (below.input, above.input) == (Decimal("1.25"), Decimal("2.5"))
    assert (below.output, above.output) == (Decimal(10), Decimal(15))


def test_reservation_is_priced_by_the_dearest_tier_and_class_it_can_reach(prices: Prices) -> None:
    small = prices.dearest("claude-sonnet-4-5", "anthropic", AT, 1000)
    assert small is not None
    assert small.input == Decimal("3.75")
    assert small.output == Decimal(15)


def test_our_arithmetic_agrees_with_that_of_genai_prices_for_each_of_its_models(prices: Prices) -> None:
    genai_prices = pytest.importorskip("genai_prices")
    from genai_prices.data_snapshot import get_snapshot

    from flowledger.prices import _genai_rate

    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            theirs = model.get_prices(AT)
            rate = _genai_rate(theirs, "x")
            if rate is None:
                continue
            for size in (1_000, 210_000, 1_100_000):
                used = genai_prices.Usage(
                    input_tokens=size, cache_read_tokens=400, cache_write_tokens=100, output_tokens=77
                )
                expected = theirs.calc_price(used)["total_price"]
                assert cost(Usage(size, 400, 100, 77, 0), rate.at(size)) == expected, (provider.id, model.id, size)
                compared += 1
    assert compared > 3_000


def test_a_list_that_changes_its_price_at_a_date_is_asked_for_that_date(prices: Prices) -> None:
    first = prices.lookup("o3", "openai", datetime(2025, 5, 1, tzinfo=UTC))
    for at, expected in ((AT, Decimal(2)), (datetime(2025, 5, 1, tzinfo=UTC), Decimal(10))):
        found = prices.lookup("o3", "openai", at)
        assert found is not None
        assert found.input == expected
    assert first == prices.lookup("o3", "openai", datetime(2025, 5, 1, tzinfo=UTC))


def test_teams_own_price_comes_first_and_the_latest_for_the_provider_wins() -> None:
    def at(version: str, **facts: object) -> TeamPrice:
        price = Price(input=Decimal(1), output=Decimal(2), source="team", version=version)
        return TeamPrice("GPT-4o", price, **facts)  # type: ignore[arg-type]

    prices = Prices(
        [
            at("any"),
            at("old", provider="openai", since=AT - timedelta(days=9)),
            at("new", provider="openai", since=AT),
            at("later", provider="openai", since=AT + timedelta(days=1)),
        ]
    )
    found = prices.lookup("gpt-4o", "openai", AT)
    before = prices.lookup("gpt-4o", "openai", AT - timedelta(days=1))
    elsewhere = prices.lookup("gpt-4o", "azure", AT)
    assert (found and found.version, before and before.version, elsewhere and elsewhere.version) == (
        "new",
        "old",
        "any",
    )


def test_team_may_say_that_a_model_of_its_own_is_free() -> None:
    free = Price(input=Decimal(0), output=Decimal(0), source="team", version="1")
    prices = Prices([TeamPrice("llama3", free, provider="ollama")])
    price = prices.lookup("llama3", "ollama", AT)
    assert price is not None
    assert cost(Usage(1000, 0, 0, 100, 0), price) == 0


def test_catalogue_is_asked_last_exact_and_only_for_the_same_provider(tmp_path: Path) -> None:
    path = catalogue(tmp_path, **{"snowflake/claude-x": ENTRY, "broken": 7})  # type: ignore[arg-type]
    prices = Prices(catalogue=path)
    price = prices.lookup("claude-x", "snowflake", AT)
    assert price is not None
    assert (price.input, price.output, price.source) == (Decimal(3), Decimal(15), "crewai-catalogue")
    assert len(price.version) == 12
    assert prices.lookup("claude-x", "anthropic", AT) is None


def test_tiers_of_the_catalogue_are_kept(tmp_path: Path) -> None:
    tiered = {**ENTRY, "input_cost_per_token_above_200k_tokens": 6e-06}
    prices = Prices(catalogue=catalogue(tmp_path, **{"snowflake/x": tiered}))
    found = [prices.lookup("x", "snowflake", AT, size) for size in (200_000, 200_001)]
    assert [price and (price.input, price.output) for price in found] == [(3, 15), (6, 15)]
    dearest = prices.dearest("x", "snowflake", AT, 300_000)
    assert dearest is not None
    assert dearest.input == 6


def test_zero_in_the_catalogue_is_unknown(tmp_path: Path) -> None:
    zero = {**ENTRY, "input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    assert Prices(catalogue=catalogue(tmp_path, **{"snowflake/x": zero})).lookup("x", "snowflake", AT) is None


@pytest.mark.parametrize("content", [None, "", "no JSON", "[]"])
def test_catalogue_that_cannot_be_read_is_done_without(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "catalogue.json"
    if content is not None:
        path.write_text(content)
    assert Prices(catalogue=path).lookup("x", "snowflake", AT) is None


def test_installed_crewai_knows_prices_and_limits() -> None:
    if (path := catalogue_file()) is None:
        pytest.skip("CrewAI is not in this environment")
    prices = Prices(catalogue=path)
    price = prices.lookup("qwen-max", "dashscope", AT)
    assert price is not None
    assert (price.input, price.output) == (Decimal("1.6"), Decimal("6.4"))
    assert prices.limits("gpt-4o-mini", "openai") == ModelLimits(128_000, 16_384)
    assert prices.limits("gpt-99", "openai") == ModelLimits()


def test_a_price_with_the_providers_prefix_is_that_for_the_provider() -> None:
    prices = Prices([TeamPrice("openai/gpt-4o", OURS), TeamPrice("acme/llama-3", OURS)])
    assert prices.lookup("gpt-4o", "openai", AT) == OURS
    assert prices.lookup("gpt-4o", "azure", AT) != OURS
    assert prices.lookup("acme/llama-3", "openrouter", AT) == OURS


def test_another_table_of_the_teams_leaves_the_lists_as_they_are_and_the_old_prices_too(tmp_path: Path) -> None:
    path = catalogue(tmp_path, **{"snowflake/x": ENTRY})
    before = Prices(catalogue=path)
    listed = before.lookup("x", "snowflake", AT)
    path.unlink()
    after = before.with_team([TeamPrice("gpt-4o", OURS)])
    assert (listed is not None, after.lookup("x", "snowflake", AT)) == (True, listed)
    assert after.lookup("gpt-4o", "openai", AT) == OURS
    assert before.lookup("gpt-4o", "openai", AT) != OURS


async def test_catalogue_is_read_only_for_a_model_that_genai_prices_does_not_know(tmp_path: Path) -> None:
    path = catalogue(tmp_path, **{"snowflake/x": ENTRY})
    prices = Prices([TeamPrice("ours", OURS)], catalogue=path)
    await prices.warm()
    assert prices.lookup("gpt-4o", "openai", AT) is not None
    assert prices.lookup("ours", "ollama", AT) == OURS
    assert prices.lookup("llama3", "ollama", AT) is None
    path.write_text(json.dumps({"snowflake/x": {**ENTRY, "input_cost_per_token": 4e-06}}))
    found = prices.lookup("x", "snowflake", AT)
    assert found is not None
    assert found.input == 4, "it was not read before"


def test_catalogue_is_found_without_importing_crewai(tmp_path: Path) -> None:
    assert catalogue_file(tmp_path) is None
    file = tmp_path / "crewai/llms/litellm_catalog/model_prices_and_context_window.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert catalogue_file(tmp_path) == file
    code = """
import importlib.util, sys
from flowledger.prices import catalogue_file
found = catalogue_file()
assert "crewai" not in sys.modules
assert (found is not None) == (importlib.util.find_spec("crewai") is not None), found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_loaded_before_it_is_asked_for_and_nothing_is_fetched() -> None:
    code = """
import socket, sys
import flowledger.prices
assert "genai_prices" not in sys.modules
def refuse(*given): raise AssertionError("the network was asked")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from datetime import datetime, timezone
assert flowledger.prices.Prices().lookup("gpt-4o", "openai", datetime.now(timezone.utc)) is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
