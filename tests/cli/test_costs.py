"""`flowledger costs`, `errors` and `budgets`: what they tell for eyes, pipes and programs, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb
from rich.console import Console

from flowledger.cli import output
from flowledger.cli.actions import budgets as budget_pages
from flowledger.cli.actions import costs as cost_pages
from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, emptied
from tests.ledger import law
from tests.ledger.law import UNREPORTED, Row, used

pytestmark = pytest.mark.timeout(120)

SOMEBODY = uuid4()
TODAY = str(datetime.now(UTC).date())


@pytest.fixture
def product(postgres: EmbeddedPostgres) -> Iterator[Product]:
    product = emptied(postgres, PROJECT)
    for key in ("alpha", "beta"):
        product.sql("select flowledger.remember_flow(%s, %s, '', '{}', '')", key, key)
    return product


def ran(product: Product, flow: str, *calls: Row, error: str | None = None, **metadata: Any) -> str:
    """An execution of the user's that made these calls and ended."""
    (known,) = product.sql("select id from crewai_flows where flow_key = %s", flow)
    with product.as_user(product.user) as user, product.connection("flowledger_worker") as worker:
        held = law.running(user, worker, known["id"])
        law.append_usage(worker, held, *calls)
        worker.execute(
            "select flowledger.finish(%s, %s, %s, null, %s, 'sold out', null, %s, null, 0, %s)",
            (
                held["execution_id"], held["fence"], "failed" if error else "completed", error,
                110 * len(calls), Jsonb(metadata),
            ),
        )  # fmt: skip
    return str(held["execution_id"])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a person would see."""
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=160, highlight=False)
    for module in (output, cost_pages, budget_pages):
        monkeypatch.setattr(module, "out", console)
    return screen


# -- Costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_told_by_flow_the_dearest_first_with_exact_money(product: Product) -> None:
    ran(product, "alpha", used(1, cost_usd="0.000000012"))
    ran(product, "beta", used(1), used(2), error="shop.NoStock")
    told = product.json("costs")
    assert (told["by"], told["last_day"]) == ("flow", None)
    assert [(row["key"], row["cost_usd"]) for row in told["rows"]] == [("beta", "0.02"), ("alpha", "0.000000012")]
    beta = told["rows"][0]
    assert (beta["executions"], beta["failed"], beta["calls"], beta["input_tokens"]) == (1, 1, 2, 200)
    assert (told["total"]["executions"], told["total"]["cost_usd"]) == (2, "0.020000012")
    assert told["total"]["is_lower_bound"] is False


@pytest.mark.parametrize("by", ["flow", "model", "user", "day", "mode", "meeting"])
def test_costs_are_told_along_each_dimension(product: Product, by: str) -> None:
    ran(product, "alpha", used(1))
    keys = {"flow": "alpha", "model": "gpt", "user": str(product.user), "day": TODAY, "mode": "manual"}
    for extra in ([], ["--flow", "alpha"]):
        told = product.json("costs", "--by", by, *extra)
        assert [(row["key"], row["calls"]) for row in told["rows"]] == [(keys.get(by), 1)]


def test_a_cost_that_lacks_something_is_called_a_lower_bound(product: Product) -> None:
    ran(product, "alpha", used(1), used(2, price=None, cost_usd=None), used(3, price=None, **UNREPORTED))
    done = product.call("costs")
    assert "1 call of a model without a price and 1 call that nobody reported tokens of" in done.stderr
    assert "`flowledger prices check`" in done.stderr
    total = product.json("costs")["total"]
    assert (total["unpriced_calls"], total["unknown_calls"], total["is_lower_bound"]) == (1, 1, True)
    product.sql("delete from crewai_flow_executions")
    product.sql("truncate flowledger.unfolded_spending")
    ran(product, "alpha", used(1))
    assert product.call("costs").stderr == ""


def test_costs_in_a_pipe_are_bare_columns(product: Product) -> None:
    ran(product, "alpha", used(1), used(2, cost_usd="0.00000002"))
    done = product.call("costs")
    assert done.stdout == "alpha\t1\t0\t2\t200\t80\t20\t0.01000002\t0.01000002\n"


def test_costs_for_eyes_end_with_a_total_and_show_later_prices_only_where_there_are_any(
    product: Product, terminal: StringIO
) -> None:
    ran(product, "alpha", used(1))
    ran(product, "beta", used(1), used(2))
    product.call("costs")
    seen = terminal.getvalue()
    assert re.search(r"FLOW +EXECUTIONS +FAILED +CALLS +INPUT +CACHED +OUTPUT +COST *\n", seen)
    assert re.search(r"total +2 +0 +3 +300 +120 +30 +\$0\.03", seen)
    (flow,) = product.sql("select id from crewai_flows where flow_key = 'alpha'")
    product.sql(
        "insert into flowledger.unfolded_spending (day, flow_id, repriced_usd) values (%s, %s, 0.5)", TODAY, flow["id"]
    )
    terminal.truncate(0)
    product.call("costs")
    assert re.search(r"alpha .*\$0\.01 +\$0\.51", terminal.getvalue())


def test_costs_between_two_dates_hold_the_days_of_the_first_and_not_of_the_second(product: Product) -> None:
    ran(product, "alpha", *(used(day, started_at=f"2026-02-0{day}T12:00:00Z") for day in range(1, 5)))
    told = product.json("costs", "--by", "day", "--since", "2026-02-02", "--until", "2026-02-04")
    assert [row["key"] for row in told["rows"]] == ["2026-02-02", "2026-02-03"]
    assert (told["first_day"], told["last_day"]) == ("2026-02-02", "2026-02-03")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--by", "weather"], 2, "weather"),
        (["--since", "yesterday"], 2, "--since"),
        (["--since", "99999999999d"], 2, "--since"),
        (["--since", "1d", "--until", "30d"], 2, "--until"),
        (["--flow", "nowhere"], 5, "nowhere"),
    ],
    ids=str,
)
def test_costs_of_nonsense_are_refused_with_the_option_named(
    product: Product, arguments: list[str], code: int, told: str
) -> None:
    done = product.call("costs", *arguments)
    assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (code, True, False)


# -- Errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_told_in_groups_with_what_they_wasted(product: Product) -> None:
    same = {"error_fingerprint": "abc", "error_place": "main.py:draft", "flow_version": 2}
    ran(product, "alpha", used(1), error="shop.NoStock", **same)
    latest = ran(product, "alpha", used(1), error="shop.NoStock", **same)
    ran(product, "beta")
    (group,) = product.json("errors")
    assert (group["fingerprint"], group["count"], group["flows"]) == ("abc", 2, {"alpha": [2]})
    assert (group["tokens"], group["cost_usd"], group["example"]) == (220, "0.02", latest)
    (line,) = product.call("errors").stdout.splitlines()
    cells = line.split("\t")
    assert cells[0:2] == ["abc", "2"]
    assert cells[4:] == ["alpha v2", "220", "0.02", latest, "shop.NoStock in main.py:draft: sold out"]
    assert product.json("errors", "--flow", "beta") == []
    assert product.json("errors", "--since", str(datetime.now(UTC) + timedelta(days=1))) == []
    assert product.call("errors", "--flow", "nowhere").returncode == 5


# -- Budgets ----------------------------------------------------------------------------------------------------------


def test_a_window_is_set_shown_reached_and_removed(product: Product) -> None:
    assert (
        "flow alpha  $0.02 a day"
        in product.call("budgets", "set", "--flow", "alpha", "--per", "day", "--usd", "0.02").stdout
    )
    ran(product, "alpha", used(1))
    (window,) = product.json("budgets", "list")
    assert (window["scope"], window["flow_key"], window["usd"], window["on_reach"]) == ("flow", "alpha", "0.02", "stop")
    assert (window["spent_usd"], window["left_usd"], window["left_tokens"]) == ("0.01", "0.01", None)
    assert (
        product.call("budgets", "list").stdout == f"{window['id']}\tflow alpha\tday\t$0.02\t$0.01\t$0.00\t$0.01\tstop\n"
    )
    ran(product, "alpha", used(1))
    refused = product.call("run", "alpha", "--detach", "--json")
    assert (refused.returncode, '"budget_used_up"' in refused.stderr) == (1, True)
    assert "the day's budget of this flow is used up" in refused.stderr
    assert "removed" in product.call("budgets", "remove", window["id"]).stdout
    assert product.call("budgets", "remove", window["id"]).returncode == 5
    assert product.json("budgets", "list") == []


def test_windows_of_users_and_of_everything(product: Product) -> None:
    for given in (
        ["--user", "each", "--per", "day", "--tokens", "5000"],
        ["--user", SOMEBODY, "--per", "month", "--usd", "10", "--tokens", "9"],
        ["--everything", "--per", "month", "--usd", "1000.50", "--on-reach", "warn"],
    ):
        assert product.json("budgets", "set", *given)["id"]
    ran(product, "alpha", used(1))
    me = str(product.user)[:8]
    lines = [line.split("\t")[1:] for line in product.call("budgets", "list").stdout.splitlines()]
    assert lines == [
        ["everything", "month", "$1,000.50", "$0.01", "$0.00", "$1,000.49", "warn"],
        ["each user", "day", "5,000 tokens", f"110 tokens by {me}", "0 tokens", "4,890 tokens", "stop"],
        [f"user {SOMEBODY}", "month", *("$10.00, 9 tokens", *["$0.00, 0 tokens"] * 2, "$10.00, 9 tokens"), "stop"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "--per"),
        (["--per", "day", "--usd", "1"], 2, "--everything"),
        (["--per", "day", "--usd", "1", "--everything", "--flow", "alpha"], 2, "--everything"),
        (["--per", "day", "--everything"], 2, "limits nothing"),
        (["--per", "week", "--everything", "--usd", "1"], 2, "week"),
        *(
            (["--per", "day", "--everything", "--usd", usd], 2, "--usd")
            for usd in ("x", "NaN", "-1", "Infinity", "1e13")
        ),
        (["--per", "day", "--everything", "--tokens", "-1"], 2, "--tokens"),
        (["--per", "day", "--everything", "--usd", "1", "--on-reach", "shout"], 2, "--on-reach"),
        (["--per", "day", "--usd", "1", "--user", "me"], 2, "--user"),
        (["--per", "day", "--usd", "1", "--flow", "nowhere"], 5, "nowhere"),
    ],
    ids=str,
)
def test_a_window_that_makes_no_sense_is_refused_with_the_option_named(
    product: Product, arguments: list[str], code: int, told: str
) -> None:
    done = product.call("budgets", "set", *arguments)
    assert (done.returncode, told in done.stderr, "Traceback" in done.stderr) == (code, True, False)
    assert product.json("budgets", "list") == []
