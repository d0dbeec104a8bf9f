"""Opens the account of each run: the prices that apply now, the run's budgets, and the windows that it falls into.

What the database knows of that is read again every few seconds, not for each run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import structlog

from flowledger.database.session import Database
from flowledger.domain.budget import Budget, Reason, Refusal, WorstCase
from flowledger.domain.controls import FlowControls
from flowledger.domain.execution import Claim
from flowledger.domain.usage import PricedCall
from flowledger.errors import FlowledgerError
from flowledger.ledger import prices, usage
from flowledger.ledger.timeline import Held
from flowledger.ledger.usage import Full
from flowledger.prices import Prices, catalogue_file
from flowledger.runner.account import Account
from flowledger.runner.limits import Limits

_log = structlog.get_logger("flowledger.accounts")

_FRESH_SECONDS = 5.0


class Accounts:
    """Of one worker."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prices = Prices()
        self._catalogue: Path | None = None
        self._has_windows = False
        self._read_at = float("-inf")

    async def warm(self) -> None:
        """Loads the first list of prices, so that no run waits for it."""
        await self._prices.warm()

    async def open(
        self,
        claim: Claim,
        controls: FlowControls,
        limits: Limits,
        keep: Callable[[PricedCall], None],
        site_packages: Path | None,
    ) -> Account:
        """The account of one run, whose CrewAI is installed in `site_packages`.

        Where the database does not answer, what was read last applies.
        """
        self._use_catalogue(catalogue_file(site_packages))
        await self._refresh()
        budgets = (Budget.from_json(claim.metadata), controls.budget)
        held = (claim.execution_id, claim.fence)
        account = Account(
            self._prices,
            keep,
            limits,
            tuple(budget for budget in budgets if budget is not None),
            Windows(self._database, held) if self._has_windows else None,
        )
        if account.asks:
            await self._prices.warm_limits()
        return account

    def _use_catalogue(self, file: Path | None) -> None:
        if file is not None and file != self._catalogue:
            self._catalogue, self._read_at = file, float("-inf")
            self._prices = Prices(catalogue=file)

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at < _FRESH_SECONDS:
            return
        try:
            async with self._database.service() as connection:
                self._has_windows = await usage.has_windows(connection)
                self._prices = self._prices.with_team(await prices.list_(connection))
        except FlowledgerError as trouble:
            _log.warning("prices_not_fresh", reason=str(trouble))
            return
        self._read_at = time.monotonic()


class Windows:
    """Room in the windows that one run falls into, several workers sharing them."""

    def __init__(self, database: Database, held: Held) -> None:
        self._database = database
        self._held = held

    async def reserve(self, number: int, worst: WorstCase) -> list[Refusal]:
        """Those that have no room. Unless all of them only warn, nothing was set aside."""
        async with self._database.service() as connection:
            full = await usage.reserve(connection, self._held, number, worst.usd, worst.tokens)
        return [_refusal(window, worst) for window in full]


def _refusal(window: Full, worst: WorstCase) -> Refusal:
    def amount(value: Decimal) -> Decimal | int:
        return value if window.unit == "usd" else int(value)

    return Refusal(
        Reason.UNPRICED if window.unit == "usd" and worst.usd is None else Reason.REACHED,
        window.unit,
        worst,
        amount(window.spent),
        amount(window.reserved),
        amount(window.limit),
        is_final=window.is_final,
        is_warning=window.is_warning,
        budget=f"the {window.period}'s budget of {_WHOSE[window.scope]}",
        is_shared=window.scope != "user",
    )


_WHOSE = {"everything": "everything", "flow": "this flow", "user": "this user"}
