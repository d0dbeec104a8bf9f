"""What a model costs: the team's own prices, then genai-prices, then the catalogue inside CrewAI; or unknown.

Offline: nothing is fetched, and `genai_prices.UpdatePrices` is never started. Importing this module loads nothing.
genai-prices is loaded once, at the first question, or before it by `warm`; the catalogue is read when that does not
know a model, or when somebody asks for limits.

Unknown is None and never 0. The two catalogues write 0 or nothing for what is free, bundled or not known, so a model
that they give no price above zero has none; that a model is free is for the team to say. The same goes for models on
one's own machines (Ollama, vLLM): a catalogue's price for the name would be that of somebody else's machine.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import importlib.util
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowledger.domain.price import SeenModel, TeamPrice
from flowledger.domain.usage import Price

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

GENAI_PRICES = "genai-prices"
CATALOGUE = "crewai-catalogue"

_MILLION = 6

_LOCAL = frozenset({"ollama", "ollama_chat", "hosted_vllm", "vllm", "lm_studio", "llamafile", "xinference", "lemonade"})

_CANONICAL = {
    "azure_openai": "azure",
    "azure_ai": "azure",
    "claude": "anthropic",
    "google": "gemini",
    "aws": "bedrock",
    "bedrock_converse": "bedrock",
}
"""Other words for a provider, as CrewAI and LiteLLM use them -> ours."""

_AT_GENAI_PRICES = {
    "bedrock": "aws",
    "gemini": "google",
    "vertex_ai": "google",
    "xai": "x-ai",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "github_copilot": "github-copilot",
    "moonshot": "moonshotai",
    "voyage": "voyageai",
    "meta_llama": "meta",
}

_IN_CATALOGUE = {
    "azure": ("azure", "azure_ai"),
    "bedrock": ("bedrock", "bedrock_converse"),
    "gemini": ("gemini",),
    "vertex_ai": ("vertex_ai-language-models", "vertex_ai-anthropic_models", "vertex_ai"),
}
"""A provider -> `litellm_provider` of its entries, where that is not its name."""


@dataclass(frozen=True)
class ModelLimits:
    """The most tokens that a model takes and gives; None: not known."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class _Rate:
    """Prices by size of the input. A tier applies to the whole call as soon as its input is larger than `starts`."""

    tiers: tuple[tuple[int, Price], ...]

    def at(self, input_tokens: int) -> Price:
        return next(price for starts, price in reversed(self.tiers) if input_tokens > starts)

    def dearest_up_to(self, input_tokens: int) -> Price:
        """Class by class the highest price of all tiers that so much input can reach."""
        reached = [price for starts, price in self.tiers if input_tokens > starts]
        highest = reached[-1]
        return replace(
            highest,
            input=max(price.dearest_input for price in reached),
            output=max(price.dearest_output for price in reached),
            cached_input=None,
            cache_write=None,
            reasoning=None,
            call=max(price.call for price in reached),
        )


class Prices:
    """Answers from memory once loaded. May be asked from any thread.

    `catalogue` is the path of CrewAI's `model_prices_and_context_window.json`; None or unreadable: done without.
    """

    def __init__(self, team: Iterable[TeamPrice] = (), catalogue: Path | None = None) -> None:
        self._team = _TeamTable(team)
        self._catalogue = _Catalogue(catalogue)

    def with_team(self, team: Iterable[TeamPrice]) -> Self:
        """The same lists below another table of the team's. Nothing is loaded again."""
        other = copy.copy(self)
        other._team = _TeamTable(team)  # noqa: SLF001
        return other

    async def warm(self) -> None:
        """Loads genai-prices in a thread, so that no later question waits for it."""
        await asyncio.to_thread(self.load)

    async def warm_limits(self) -> None:
        """Loads the catalogue too, which alone knows the limits of models."""
        await asyncio.to_thread(self._catalogue.load)

    def load(self) -> None:
        _genai_version()
        _genai_price("gpt-4o", "openai", datetime.now().astimezone())

    def lookup(self, model: str, provider: str, at: datetime, input_tokens: int = 0) -> Price | None:
        """The price of a call that began at `at` and took in all `input_tokens`, which decide the tier."""
        rate = self._rate(model, provider, at)
        return None if rate is None else rate.at(input_tokens)

    def dearest(self, model: str, provider: str, at: datetime, input_tokens: int) -> Price | None:
        """A price that no call with at most so much input exceeds, for a reservation."""
        rate = self._rate(model, provider, at)
        return None if rate is None else rate.dearest_up_to(input_tokens)

    def set_by_team(self, model: str, provider: str, at: datetime) -> list[TeamPrice]:
        """The team's prices that fit such a call; the first is the one that applies."""
        for who, name in _references(model, provider):
            if fitting := self._team.fitting(name, who, at):
                return fitting
        return []

    def limits(self, model: str, provider: str) -> ModelLimits:
        """By the catalogue; what the team's table and genai-prices know of limits is not asked."""
        for who, name in _references(model, provider):
            if who not in _LOCAL and (entry := self._catalogue.find(who, name)) is not None:
                return ModelLimits(_limit(entry.get("max_input_tokens")), _limit(entry.get("max_output_tokens")))
        return ModelLimits()

    def _rate(self, model: str, provider: str, at: datetime) -> _Rate | None:
        if own := self.set_by_team(model, provider, at):
            return _Rate(((-1, own[0].price),))
        named = [(who, name) for who, name in _references(model, provider) if who not in _LOCAL]
        for who, name in named:
            if rate := _genai_price(name, who, at) or self._catalogue.rate(who, name):
                return rate
        return None


@dataclass(frozen=True)
class Listed:
    """What a model costs. `price` None: unknown. `applies` False: a price of the team's that no call gets now."""

    model: str
    provider: str | None
    price: Price | None
    since: datetime | None = None
    set_by: str | None = None
    applies: bool = True
    calls: int = 0
    unpriced_calls: int = 0
    last_call_at: datetime | None = None


def listed_prices(known: Prices, team: Sequence[TeamPrice], seen: Sequence[SeenModel], now: datetime) -> list[Listed]:
    """Every model that was seen, then the team's other prices."""
    listed, shown = [], set()
    for one in seen:
        own = next(iter(known.set_by_team(one.model, one.provider, now)), None)
        shown.add(own and own.key)
        facts = {"since": own.since, "set_by": own.set_by} if own else {}
        listed.append(Listed(price=known.lookup(one.model, one.provider, now), **facts, **vars(one)))  # type: ignore[arg-type]
    for own in team:
        if own.key not in shown:
            applies = known.set_by_team(own.model, own.provider or "", now)[:1] == [own]
            listed.append(Listed(own.model, own.provider, own.price, own.since, own.set_by, applies))
    return listed


class _TeamTable:
    """The team's prices by the names that they are looked up by."""

    def __init__(self, prices: Iterable[TeamPrice]) -> None:
        self._named: dict[str, list[tuple[str | None, TeamPrice]]] = defaultdict(list)
        for own in prices:
            model, provider = own.model.lower(), None if own.provider is None else _canonical(own.provider)
            self._named[model].append((provider, own))
            prefix, slash, rest = model.partition("/")
            if slash and provider in (None, _canonical(prefix)):
                self._named[rest].append((_canonical(prefix), own))

    def fitting(self, model: str, provider: str, at: datetime) -> list[TeamPrice]:
        found = [
            (who is not None, own.since is not None, own.since or at, own)
            for who, own in self._named.get(model, ())
            if who in (None, provider) and (own.since is None or own.since <= at)
        ]
        return [own for *_, own in sorted(found, key=lambda one: one[:3], reverse=True)]


def _references(model: str, provider: str) -> list[tuple[str, str]]:
    """What a model may be called by, the likeliest first.

    CrewAI leaves the provider's own prefix out, a user's LLM class may leave it in; OpenRouter's names hold another's.
    """
    who, name = _canonical(provider), model.strip().lower()
    # A foundation model or a shared inference profile; a profile of one's own ends in a word that no list knows.
    if name.startswith("arn:aws:bedrock"):
        name = name.rsplit("/", 1)[-1]
    found = [(who, name.removeprefix("models/"))]
    prefix, slash, rest = name.partition("/")
    if slash and rest and (_canonical(prefix) == who or who in ("", "unknown", "litellm")):
        found.append((_canonical(prefix), rest))
    return found


def _canonical(provider: str) -> str:
    name = provider.strip().lower()
    return _CANONICAL.get(name, name)


def _limit(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


# -- genai-prices -----------------------------------------------------------------------------------------------------


@cache
def _genai_version() -> str | None:
    """None when it is not installed."""
    try:
        import genai_prices
    except ImportError:
        return None
    return genai_prices.__version__


def _genai_price(model: str, provider: str, at: datetime) -> _Rate | None:
    version = _genai_version()
    if version is None:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, found = get_snapshot().find_provider_model(model, None, _AT_GENAI_PRICES.get(provider, provider), None)
    except LookupError:
        return None
    price = found.get_prices(at)
    # Known by its identity, since it cannot be hashed; kept beside its rate, so that the identity stays its own.
    if id(price) not in _genai_rates:
        _genai_rates[id(price)] = price, _genai_rate(price, version)
    return _genai_rates[id(price)][1]


_genai_rates: dict[int, tuple[ModelPrice, _Rate | None]] = {}


def _genai_rate(price: ModelPrice, version: str) -> _Rate | None:
    """Its prices are one Decimal, or a base with tiers; both in USD per million tokens."""
    given: dict[str, Decimal | TieredPrices | None] = {
        name: getattr(price, name, None) for name in _GENAI_CLASSES.values()
    }
    starts = {-1} | {tier.start for amount in given.values() for tier in getattr(amount, "tiers", ())}

    def at(start: int, name: str) -> Decimal | None:
        amount = given[name]
        if amount is None or isinstance(amount, Decimal):
            return amount
        return next((tier.price for tier in reversed(amount.tiers) if tier.start <= start), amount.base)

    tiers = ((start, {ours: at(start, theirs) for ours, theirs in _GENAI_CLASSES.items()}) for start in sorted(starts))
    requests = at(-1, "requests_kcount")
    return _rate(tiers, GENAI_PRICES, version, call=Decimal(0) if requests is None else requests / 1000)


_GENAI_CLASSES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "output": "output_mtok",
    "reasoning": "output_reasoning_mtok",
    "requests_kcount": "requests_kcount",
}


# -- The catalogue inside CrewAI --------------------------------------------------------------------------------------

_CATALOGUE_FILE = Path("llms", "litellm_catalog", "model_prices_and_context_window.json")


def catalogue_file(site_packages: Path | None = None) -> Path | None:
    """CrewAI's catalogue in an interpreter's `site_packages`; None: in our own environment. CrewAI is not imported.

    Answers None where there is none.
    """
    if site_packages is not None:
        folders = [site_packages / "crewai"]
    else:
        spec = importlib.util.find_spec("crewai")
        folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    return next((file for folder in folders if (file := folder / _CATALOGUE_FILE).is_file()), None)


_CATALOGUE_CLASSES = {
    "input": "input_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "output": "output_cost_per_token",
    "reasoning": "output_cost_per_reasoning_token",
}
_TIER = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")


class _Catalogue:
    """LiteLLM's list, as CrewAI brings it: USD for one token, tiers by name. Read once; numbers stay exact."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] | None = None
        self._version = ""
        self._loading = threading.Lock()

    def load(self) -> dict[str, dict[str, Any]]:
        with self._loading:
            if self._entries is None:
                self._entries = self._read()
        return self._entries

    def find(self, provider: str, model: str) -> dict[str, Any] | None:
        """Only an entry of this provider: the same model costs something else elsewhere."""
        entries = self.load()
        theirs = _IN_CATALOGUE.get(provider, (provider,))
        for key in (*(f"{name}/{model}" for name in theirs), model):
            entry = entries.get(key)
            if entry is not None and entry.get("litellm_provider") in theirs:
                return entry
        return None

    def rate(self, provider: str, model: str) -> _Rate | None:
        entry = self.find(provider, model)
        if entry is None:
            return None
        starts = sorted(int(found[1]) for key in entry if (found := _TIER.fullmatch(key)))
        names = [(-1, "")] + [(start * 1000, f"_above_{start}k_tokens") for start in starts]
        tiers: list[tuple[int, dict[str, Decimal | None]]] = []
        for start, ending in names:
            below = tiers[-1][1] if tiers else {}
            prices = {ours: _per_million(entry.get(theirs + ending)) for ours, theirs in _CATALOGUE_CLASSES.items()}
            tiers.append((start, {ours: below.get(ours) if at is None else at for ours, at in prices.items()}))
        return _rate(tiers, CATALOGUE, self._version)

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._path is None:
            return {}
        try:
            content = self._path.read_bytes()
            read = json.loads(content, parse_float=Decimal)
        except (OSError, ValueError):
            return {}
        if not isinstance(read, dict):
            return {}
        self._version = hashlib.sha256(content).hexdigest()[:12]
        return {str(key).lower(): entry for key, entry in read.items() if isinstance(entry, dict)}


def _per_million(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    return Decimal(value).scaleb(_MILLION)


def _rate(
    tiers: Iterable[tuple[int, Mapping[str, Decimal | None]]], source: str, version: str, call: Decimal = Decimal(0)
) -> _Rate | None:
    """None unless input and output both have a price, and one of them is above zero."""
    built = []
    for start, of in tiers:
        given, spoken = of["input"], of["output"]
        if given is None or spoken is None or not given + spoken > 0:
            return None
        parts = {name: of[name] for name in ("cached_input", "cache_write", "reasoning")}
        built.append((start, Price(input=given, output=spoken, source=source, version=version, call=call, **parts)))
    return _Rate(tuple(built))
