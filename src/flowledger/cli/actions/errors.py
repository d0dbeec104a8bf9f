"""Tells what failed, in groups."""

from __future__ import annotations

from typing import Any

from flowledger.cli.actions.reading import with_desk
from flowledger.cli.flags import moment, settings
from flowledger.cli.output import local_time, money, out, plain, short_id, tokens, write_json, write_table
from flowledger.ledger.failures import Failures


def errors(*, since: str, flow: str | None, as_json: bool, **flags: Any) -> None:
    begin = moment(since, "--since")

    found = with_desk(settings(**flags), lambda desk: desk.failures(begin, flow))
    if as_json:
        write_json(found)
        return
    write_table(
        ("FINGERPRINT", "COUNT", "FIRST SEEN", "LAST SEEN", "FLOWS", "TOKENS", "COST", "EXAMPLE", "ERROR"),
        [_cells(one) for one in found],
        right=("COUNT", "TOKENS", "COST"),
    )


def _cells(one: Failures) -> tuple[str, ...]:
    eyes = out.is_terminal
    flows_ = ", ".join(_flow(key, versions) for key, versions in sorted(one.flows.items()))
    return (
        one.fingerprint,
        f"{one.count:,}" if eyes else str(one.count),
        local_time(one.first_seen) if eyes else plain(one.first_seen),
        local_time(one.last_seen) if eyes else plain(one.last_seen),
        flows_,
        tokens(one.tokens) if eyes else str(plain(one.tokens) or ""),
        ("≥ " if one.unpriced and one.cost_usd else "") + money(one.cost_usd)
        if eyes
        else str(plain(one.cost_usd) or ""),
        short_id(one.example) if eyes else str(one.example),
        _error(one),
    )


def _flow(key: str, versions: list[int]) -> str:
    return key + (f" v{','.join(map(str, versions))}" if versions else "")


def _error(one: Failures) -> str:
    return f"{one.error_type or 'no error type'}" + (f" in {one.place}" if one.place else "") + f": {one.message or ''}"
