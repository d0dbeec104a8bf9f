"""`flowledger prices`: what models cost, the team's own prices, what looks wrong, and old executions priced again."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.domain.usage import CallStatus
from tests.acceptance.product import PROJECT, Product, emptied
from tests.ledger.past import MILLION, call, ended, price

pytestmark = pytest.mark.timeout(120)

SINCE = ("--since", "2026-11-01")


@pytest.fixture
def product(postgres: EmbeddedPostgres) -> Product:
    return emptied(postgres, PROJECT)


def past(product: Product, *calls: Any) -> UUID:
    return ended(product.postgres, product.user, *calls)


def listed(product: Product) -> dict[tuple[str, str | None], Any]:
    return {(one["model"], one["provider"]): one for one in product.json("prices", "list", *SINCE)}


def set_(product: Product, model: str, *options: object, given: str = "1", spoken: str = "2") -> Any:
    return product.json("prices", "set", model, "--input", given, "--output", spoken, *options)


# -- List -------------------------------------------------------------------------------------------------------------


def test_each_model_is_listed_with_the_price_that_applies_now_and_its_source(product: Product) -> None:
    past(product, call("gpt-4o", price("1", "1")), call("qwen-max", provider="dashscope"), call("m", provider="ollama"))
    set_(product, "m", "--since", "2026-11-01", "--per-call", "0.001")
    set_(product, "m", "--since", "2090-01-01")
    set_(product, "other", "--provider", "azure")
    found = listed(product)
    assert [(name, one["calls"]) for name, one in found.items() if one["calls"]] == [
        (("gpt-4o", "openai"), 1),
        (("m", "ollama"), 1),
        (("qwen-max", "dashscope"), 1),
    ]
    assert {name: one["price"]["source"] for name, one in found.items()} == {
        ("gpt-4o", "openai"): "genai-prices",
        ("m", "ollama"): "team",
        ("qwen-max", "dashscope"): "crewai-catalogue",
        ("m", None): "team",
        ("other", "azure"): "team",
    }
    assert all(one["price"]["version"] for one in found.values())
    ours = found["m", "ollama"]
    assert (ours["price"]["input"], ours["price"]["call"], ours["unpriced_calls"]) == ("1", "0.001", 1)
    assert (ours["since"], ours["applies"]) == ("2026-11-01T00:00:00Z", True)
    assert (found["m", None]["since"], found["m", None]["applies"]) == ("2090-01-01T00:00:00Z", False)
    lines = product.call("prices", "list", *SINCE).stdout.splitlines()
    assert lines[0].split("\t")[:4] == ["gpt-4o", "openai", "2.5", "10"]


def test_a_model_that_nobody_knows_is_listed_as_unknown_and_not_as_zero(product: Product) -> None:
    past(product, call("m", provider="ollama"))
    assert listed(product)["m", "ollama"]["price"] is None
    (line,) = product.call("prices", "list", *SINCE).stdout.splitlines()
    assert line.split("\t") == ["m", "ollama", *[""] * 6, "unknown", "", "", "1"]


# -- Set, remove, import ----------------------------------------------------------------------------------------------


def test_a_price_is_set_changed_and_removed(product: Product) -> None:
    assert set_(product, "GPT-4o", "--provider", "OpenAI", "--cached-input", "0.50") == {"given": 1, "changed": 1}
    assert set_(product, "gpt-4o", "--provider", "openai", "--cached-input", "0.5") == {"given": 1, "changed": 0}
    (row,) = product.sql("select model, provider, cached_input_usd, reasoning_usd, set_by from flowledger.prices")
    assert row == {
        "model": "gpt-4o",
        "provider": "openai",
        "cached_input_usd": Decimal("0.5"),
        "reasoning_usd": None,
        "set_by": "flowledger_api",
    }
    assert product.json("prices", "remove", "gpt-4o", "--provider", "openai") == {"removed": True}
    assert product.sql("select 1 from flowledger.prices") == []


def test_removing_what_is_not_there_tells_what_is(product: Product) -> None:
    set_(product, "m", "--provider", "azure", *SINCE)
    done = product.call("prices", "remove", "m")
    assert done.returncode == 5
    assert "--provider azure --since 2026-11-01T00:00:00Z" in done.stderr
    assert (
        product.call("prices", "remove", "m", "--provider", "azure", "--since", "2026-11-01T00:00:00Z").returncode == 0
    )
    assert "`flowledger prices list`" in product.call("prices", "remove", "m").stderr


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--input", "-1", "--output", "2"], "--input"),
        (["--input", "nan", "--output", "2"], "--input"),
        (["--input", "1", "--output", "two"], "--output"),
        (["--input", "1", "--output", "2", "--cached-input", "-0.1"], "--cached-input"),
        (["--input", "1", "--output", "2", "--cache-write", "1e9"], "--cache-write"),
        (["--input", "1", "--output", "2", "--reasoning", "$1"], "--reasoning"),
        (["--input", "1", "--output", "2", "--per-call", "Infinity"], "--per-call"),
        (["--input", "1", "--output", "2", "--since", "30d"], "--since"),
        (["--input", "1", "--output", "2", "--provider", " "], "--provider"),
    ],
)
def test_what_is_no_price_is_refused_by_its_option(product: Product, options: list[str], field: str) -> None:
    done = product.call("prices", "set", "m", *options, "--json")
    assert done.returncode == 2
    told = json.loads(done.stderr)["error"]
    assert (told["code"], told["message"].split(": ")[0], bool(told["hint"])) == ("invalid_input", field, True)
    assert product.sql("select 1 from flowledger.prices") == []


def test_a_file_is_imported_whole_or_not_at_all(product: Product, tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("model,input,output\na,1,2\nb,3,x\n")
    done = product.call("prices", "import", file)
    assert (done.returncode, f"{file}:3 output" in done.stderr) == (2, True)
    assert product.sql("select 1 from flowledger.prices") == []
    file.write_text("model,input,output\na,1,2\nb,3,4\n")
    assert product.json("prices", "import", file) == {"given": 2, "changed": 2}
    assert product.json("prices", "import", file) == {"given": 2, "changed": 0}
    assert len(product.sql("select 1 from flowledger.prices")) == 2


# -- Check ------------------------------------------------------------------------------------------------------------


def test_check_exits_1_only_where_a_model_has_no_price(product: Product) -> None:
    past(product, call("gpt-4o"), call("m", provider="ollama"))
    set_(product, "gpt-4o", given="250", spoken="1000")
    done = product.call("prices", "check", *SINCE, "--json")
    assert done.returncode == 1
    assert [(one["kind"], one["model"]) for one in json.loads(done.stdout)] == [
        ("repriceable", "gpt-4o"),
        ("unpriced", "m"),
        ("differs", "gpt-4o"),
    ]
    assert "flowledger prices set m --provider ollama" in product.call("prices", "check", *SINCE).stdout
    set_(product, "m", "--provider", "ollama", given="0", spoken="0")
    assert product.call("prices", "check", *SINCE).returncode == 0


def test_check_has_nothing_to_say_of_a_ledger_in_order(product: Product) -> None:
    past(product, call("gpt-4o", price("2.5", "10")))
    done = product.call("prices", "check", *SINCE)
    assert (done.returncode, done.stdout.strip()) == (0, "✓ Every model that was used has a price.")


# -- Reprice ----------------------------------------------------------------------------------------------------------


def test_reprice_only_tells_unless_told_to_note_it(product: Product) -> None:
    past(product, call("m", provider="ollama"), call("gpt-4o", price("1", "1")))
    set_(product, "m", "--provider", "ollama", given="0.5", spoken="0.25")
    told = product.json("prices", "reprice", *SINCE)
    assert (told["executions"], told["recorded"]) == (1, None)
    version = product.json("prices", "list", *SINCE)[1]["price"]["version"]
    assert told["changes"][1] == {
        "model": "m",
        "provider": "ollama",
        "calls": 1,
        "newly_priced": 1,
        "counted_usd": "0",
        "new_usd": "0.75",
        "change_usd": "0.75",
        "prices": [f"team {version}"],
    }
    assert [one["change_usd"] for one in told["changes"]] == ["10.5", "0.75"]
    assert "nothing was noted" in product.call("prices", "reprice", *SINCE).stderr
    assert product.sql("select 1 from flowledger.repricings") == []


def test_reprice_notes_each_change_once(product: Product) -> None:
    execution = past(product, call("m", provider="ollama"), call("gpt-4o", price("2.5", "10")))
    set_(product, "m", given="1", spoken="1")
    before = product.row(execution)
    assert product.json("prices", "reprice", *SINCE, "--yes")["recorded"] == 1
    assert product.json("prices", "reprice", *SINCE, "--yes") == {"executions": 0, "recorded": 0, "changes": []}
    set_(product, "m", given="1", spoken="0")
    assert "1 executions repriced" in product.call("prices", "reprice", *SINCE, "--yes").stdout
    assert product.row(execution) == before
    told = product.sql("select old_usd, new_usd from flowledger.repricings order by repriced_at")
    assert told == [{"old_usd": None, "new_usd": Decimal("14.5")}, {"old_usd": None, "new_usd": Decimal("13.5")}]
    (spent,) = product.sql("select sum(cost_usd) as old, sum(repriced_usd) as later from flowledger.unfolded_spending")
    assert spent == {"old": Decimal("12.5"), "later": Decimal(1)}


def test_a_call_that_nothing_prices_any_more_keeps_its_price(product: Product) -> None:
    past(product, call("gone", price("1", "1")), call("silent", usage=None, status=CallStatus.UNKNOWN))
    assert product.json("prices", "reprice", *SINCE, "--yes")["recorded"] == 0


def test_reprice_takes_some_flows_or_models_and_the_price_of_the_day(product: Product) -> None:
    past(product, call("a"), call("b"))
    ended(product.postgres, product.user, call("a"), flow="beta")
    set_(product, "a", "--since", "2026-11-20")
    set_(product, "b", "--since", "2026-11-21")
    assert product.json("prices", "reprice", *SINCE, "--flow", "beta")["executions"] == 1
    assert product.json("prices", "reprice", *SINCE)["executions"] == 2
    assert product.json("prices", "reprice", *SINCE, "--model", "b")["executions"] == 0, "its calls began before"
    assert product.json("prices", "reprice", "--since", "2090-01-01")["executions"] == 0
    assert product.call("prices", "reprice", "--flow", "nowhere").returncode == 5


def test_many_executions_are_repriced_in_batches(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowledger.cli.actions.reprice._EXECUTIONS_AT_ONCE", 3)
    for _ in range(7):
        past(product, call("m", provider="ollama", usage=MILLION))
    set_(product, "m")
    assert product.json("prices", "reprice", *SINCE, "--yes")["recorded"] == 7
    (spent,) = product.sql(
        "select sum(repriced_usd) as usd, sum(unpriced_calls) as n from flowledger.unfolded_spending"
    )
    assert spent == {"usd": 21, "n": 0}
