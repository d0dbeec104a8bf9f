"""Takes secrets out of texts: by value those that an environment holds, then what looks like one.

Standard library only: the child lets everything through here that leaves it, the worker what a run prints. What is a
secret is decided in `secret.py`, what a token looks like in `token.py`. `[redacted OPENAI_API_KEY]` stands for a value
of that variable, `[redacted]` for what only looked like a secret.
"""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from flowledger.runner import token
from flowledger.runner.secret import in_json, secrets_of, variants

Known = list[tuple[str, list[str]]]
"""Names of variables and the forms of their secrets."""
Span = tuple[int, int, str]

_MOST_LEARNT = 500
"""Secrets that came after the environment's own; a flow may take a new token every second."""
_REACH_OF_TOKENS = 512
_LONGEST_OPEN_WORD = 4_096
_LONGEST_OPEN_KEY = 8_192
_ROOM_FOR_SCHEME = 10
_LONGEST_NAME = 60
_UNFIT_FOR_NAMES = re.compile(r"[^\w.-]")


class Redactor:
    """What is to be taken out. Without anything given, what looks like a token.

    `patterns` are regular expressions of the flow's own. `on_learn` is told what `learn` learns. Every method but those
    that learn leaves an ordinary text as it is, at the price of one look for each known form.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, patterns: Iterable[str] = ()) -> None:
        self._secrets: dict[str, tuple[str, list[str]]] = {}
        self._learnt: deque[str] = deque()
        self._patterns = tuple(map(re.compile, patterns))
        self.on_learn: Callable[[Known], object] | None = None
        self._take(environment or {})
        self._settle()

    @property
    def known(self) -> Known:
        """For another redactor's `add`."""
        return list(self._secrets.values())

    @property
    def reach(self) -> int:
        """No form of a secret has more bytes, and a token is known as one before it has as many."""
        return self._reach

    @property
    def lead(self) -> int:
        """What lies further before a place in a text, in bytes, does not matter for what is redacted there."""
        return max(self._reach, _LONGEST_OPEN_KEY)

    # -- Learning -----------------------------------------------------------------------------------------------------

    def learn_all(self, environment: Mapping[str, str]) -> None:
        """Takes the secrets of an environment in, for good."""
        if self._take(environment):
            self._settle()

    def learn(self, name: str, value: str) -> None:
        """Takes in what a variable was set to. Of many, the last count."""
        new = self._take({name: value})
        if not new:
            return
        self._learnt.extend(new)
        self._forget_the_oldest()
        self._settle()
        if self.on_learn is not None:
            self.on_learn([self._secrets[secret] for secret in new])

    def add(self, known: Known) -> None:
        """Takes in what another redactor knows: at first all of an environment, for good; later what was learnt."""
        told = {forms[0]: (name, forms) for name, forms in known if forms}
        if self._secrets:
            self._learnt.extend(told.keys() - self._secrets.keys())
        self._secrets.update(told)
        self._forget_the_oldest()
        self._settle()

    def also(self, patterns: Iterable[str]) -> None:
        """Takes in regular expressions. Raises re.error."""
        self._patterns += tuple(map(re.compile, patterns))

    def _forget_the_oldest(self) -> None:
        while len(self._learnt) > _MOST_LEARNT:
            self._secrets.pop(self._learnt.popleft(), None)

    def _take(self, environment: Mapping[str, str]) -> list[str]:
        new = []
        for name, value in environment.items():
            for secret in secrets_of(name, value):
                if secret not in self._secrets:
                    self._secrets[secret] = (_fit(name), variants(secret))
                    new.append(secret)
        return new

    def _settle(self) -> None:
        """Makes ready what every look needs. Whole values are exchanged: other threads may be looking."""
        forms: dict[str, str] = {}
        for name, own_forms in list(self._secrets.values()):
            for form in own_forms:
                forms.setdefault(form, name)
        self._forms = forms
        self._needles = tuple(forms)
        self._needles_of_json: tuple[str, ...] | None = None
        self._sorted = sorted(forms)
        self._longest = max(map(len, forms), default=0)
        self._have_lines = any("\n" in form for form in forms)
        self._reach = max([_REACH_OF_TOKENS, *(len(form.encode("utf-8", "surrogatepass")) for form in forms)])

    # -- Redacting ----------------------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        """The text without secrets; the very same if it holds none."""
        spans = self._spans(text)
        return _replaced(text, spans, len(text)) if spans else text

    def cut(self, text: str, most: int) -> str:
        """The beginning of the text, at most that many characters, looking no further than a secret may reach: one
        across the cut leaves no part of itself.
        """
        if len(text) <= most:
            return self.text(text)[:most]
        window = text[: most + self._reach]
        spans = self._spans(window)
        return _replaced(window, spans, most)[:most] if spans else window[:most]

    def data(self, value: Any, *, numbers: bool = False, keys: bool = True) -> Any:
        """The same for plain JSON data, keys too. `numbers`: those that are a secret as a whole as well."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._object(value, numbers=numbers, keys=keys)
        if isinstance(value, list):
            return [self.data(item, numbers=numbers, keys=keys) for item in value]
        if numbers and isinstance(value, (int, float)) and (name := self._forms.get(str(value))) is not None:
            return _marker(name)
        return value

    def suspects(self, text: str) -> bool:
        """False if there is nothing to redact, neither in this text nor in the data of which it is the JSON text."""
        if self._patterns:
            # What they are to find may be spelled otherwise in JSON.
            return True
        if self._needles_of_json is None:
            self._needles_of_json = tuple({*self._forms, *(spelt for form in self._forms for spelt in in_json(form))})
        for needle in self._needles_of_json:
            if needle in text:
                return True
        return any(shape.loose.search(text) for shape in token.shapes_in(text))

    def _object(self, value: dict[str, Any], **how: bool) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = self.text(key) if how["keys"] else key
            while name in result:
                name += "'"
            result[name] = self.data(item, **how)
        return result

    def _spans(self, text: str) -> list[Span]:
        """What is to be replaced, in order, apart from each other."""
        found: list[Span] = []
        for needle in self._needles:
            if needle in text:
                found += _all_of(needle, text, self._forms.get(needle, ""))
        for shape in token.shapes_in(text):
            found += _matches(shape.strict, text, shape.strict.groups)
        for pattern in self._patterns:
            found += _matches(pattern, text, 0)
        return _merged(found) if found else found

    # -- Streams ------------------------------------------------------------------------------------------------------

    def settled(self, text: str) -> int:
        """How much of a stream's text may be let go: behind it a secret may have begun that is not here in full."""
        end = len(text)
        at = min(self._secret_begins(text), _token_begins(text))
        if self._patterns and (line := text.rfind("\n") + 1) < end:
            at = min(at, max(line, end - _LONGEST_OPEN_WORD))
        return at if at == end else self._beginning_of(text, at)

    def clear(self, text: str, at: int) -> int:
        """`at`, or the end of the secret that lies across it."""
        first = max(0, at - self.lead)
        for start, stop, _ in self._spans(text[first : at + self._reach]):
            if start < at - first < stop:
                return first + stop
        return at

    def _beginning_of(self, text: str, at: int) -> int:
        """`at`, or the beginning of the secret that lies across it."""
        first = max(0, at - self.lead)
        for start, stop, _ in self._spans(text[first:]):
            if start < at - first < stop:
                return first + start
        return at

    def _secret_begins(self, text: str) -> int:
        """Where a beginning of a secret lies at the end; the text's length if there is none."""
        first = max(0, len(text) - self._longest + 1)
        if not self._have_lines:
            first = max(first, text.rfind("\n") + 1)
        for at in range(first, len(text)):
            rest = text[at:]
            nearest = bisect_left(self._sorted, rest)
            if nearest < len(self._sorted) and self._sorted[nearest].startswith(rest):
                return at
        return len(text)


def watch(learn: Callable[[str, str], object]) -> None:
    """Tells every variable that this process and its forks set from now on (load_dotenv does so too), or give to a
    process that they start. There is no end to it.
    """

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.putenv":
            _tell(learn, {arguments[0]: arguments[1]})
        elif event == "subprocess.Popen" and arguments[3]:
            _tell(learn, {name: value for name, value in dict(arguments[3]).items() if os.environ.get(name) != value})

    sys.addaudithook(hear)


@lru_cache(maxsize=1)
def own() -> Redactor:
    """This process's own: for what it says itself, where that is not a flow's."""
    return Redactor(os.environ)


def _tell(learn: Callable[[str, str], object], variables: dict[Any, Any]) -> None:
    for name, value in variables.items():
        # What is raised in here would fail the flow's own statement.
        try:
            learn(os.fsdecode(name), os.fsdecode(value))
        except Exception:  # noqa: S112
            continue


def _token_begins(text: str) -> int:
    """Where a token may go on at the end: in the last word, in the credential behind "Bearer", in a private key."""
    end = len(text)
    at = max(text.rfind(" "), text.rfind("\n"), text.rfind("\t")) + 1
    word, before = text[at:], text[max(0, at - _ROOM_FOR_SCHEME) : at]
    begun = end
    if before.rstrip(" ").lower().endswith(token.SCHEMES):
        begun = at - len(before)
    elif len(word) <= _LONGEST_OPEN_WORD and token.may_go_on(word):
        begun = at
    key = text.rfind(token.KEY_BEGINS, max(0, end - _LONGEST_OPEN_KEY))
    return min(begun, key) if key >= 0 and not token.KEY_ENDS.search(text, key) else begun


def _all_of(needle: str, text: str, name: str) -> Iterable[Span]:
    at = text.find(needle)
    while at >= 0:
        yield at, at + len(needle), name
        at = text.find(needle, at + 1)


def _matches(pattern: re.Pattern[str], text: str, group: int) -> Iterable[Span]:
    for found in pattern.finditer(text):
        start, stop = found.span(group)
        if stop > start:
            yield start, stop, ""


def _merged(spans: list[Span]) -> list[Span]:
    """Those that overlap become one, named for the longest value in it."""
    merged: list[Span] = []
    longest = 0
    for start, stop, name in sorted(spans):
        length = stop - start if name else 0
        if merged and start < merged[-1][1]:
            first, last, known = merged[-1]
            merged[-1] = (first, max(last, stop), name if length > longest else known)
            longest = max(longest, length)
        else:
            merged.append((start, stop, name))
            longest = length
    return merged


def _replaced(text: str, spans: list[Span], end: int) -> str:
    """The text up to `end`, each span replaced; one across the end too."""
    parts, at = [], 0
    for start, stop, name in spans:
        if start >= end:
            break
        parts += [text[at:start], _marker(name)]
        at = stop
    parts.append(text[at:end])
    return "".join(parts)


def _marker(name: str) -> str:
    return f"[redacted {name}]" if name else "[redacted]"


def _fit(name: str) -> str:
    """A variable's name may hold anything."""
    return _UNFIT_FOR_NAMES.sub("_", name)[:_LONGEST_NAME]
