"""What secrets look like that nobody told us of: the shapes of well-known tokens. Standard library only."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = r"(?:[A-Za-z0-9]{20,}|(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{16,})[A-Za-z0-9_-]*"
_CREDENTIAL = r"((?=[A-Za-z0-9._~+/-]*[\d=])[A-Za-z0-9._~+/-]{8,}=*|[A-Za-z0-9._~+/-]{24,}=*)"
_PRIVATE_KEY = (
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----"
    r"(?s:.*?-----END [A-Z0-9 ]*PRIVATE KEY-----|(?:\s|\\[nr]|[A-Za-z0-9+/=]{30,})*)"
)
_WORD_BEGINS = r"(?<![A-Za-z0-9])"


class Shape(NamedTuple):
    """Every such token holds one of `openers`. `strict` finds it where a word begins, `loose` also behind the `n` of
    an escaped line end. Group 1, if there is one, is the secret.
    """

    openers: tuple[str, ...]
    strict: re.Pattern[str]
    loose: re.Pattern[str]


def _shape(*openers: str, then: str = _WORD) -> Shape:
    pattern = f"(?:{'|'.join(map(re.escape, openers))}){then}"
    return Shape(openers, re.compile(_WORD_BEGINS + pattern), re.compile(pattern))


def _around(opener: str, pattern: str) -> Shape:
    return Shape((opener,), re.compile(pattern), re.compile(pattern))


class _Gate:
    """Shapes whose openers share a mark, so that one look tells mostly that none of them is there."""

    def __init__(self, mark: str, *shapes: Shape) -> None:
        self.shapes = shapes
        self._mark = mark
        openers = [opener for shape in shapes for opener in shape.openers]
        before = {opener: opener.rpartition(mark)[0].rpartition(mark)[2] for opener in openers}
        self._before_mark = tuple({words for words in before.values() if words})
        self._alone = tuple(opener for opener, words in before.items() if not words)

    def shapes_in(self, text: str) -> list[Shape]:
        if self._mark not in text or not self._may_be_in(text):
            return []
        return [shape for shape in self.shapes if any(opener in text for opener in shape.openers)]

    def _may_be_in(self, text: str) -> bool:
        """Splitting and comparing ends is many times as fast as looking for each opener in a text full of marks."""
        for opener in self._alone:
            if opener in text:
                return True
        if self._before_mark:
            for piece in text.split(self._mark):
                if piece.endswith(self._before_mark):
                    return True
        return False


_GATES = (
    _Gate(
        "-",
        _shape("sk-", "xai-", "pplx-", "tvly-", "glpat-", "pypi-"),
        _shape("xoxb-", "xoxp-", "xoxa-", "xoxe-", "xapp-", then="[A-Za-z0-9-]{10,}"),
        _around("PRIVATE KEY-----", _PRIVATE_KEY),
    ),
    _Gate(
        "_",
        _shape("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        _shape("sk_live_", "sk_test_", "rk_live_", "rk_test_"),
        _shape("whsec_", "gsk_", "hf_", "r8_", "npm_", "lsv2_", "dop_v1_"),
    ),
    _Gate(
        "/",
        _around("://", r"""://[^\s:/?#@"'<>{}]*:([^\s/?#"'<>{}$\\]+)@"""),
        _around("hooks.slack.com/", r"hooks\.slack\.com/(services/[A-Za-z0-9/_-]{16,})"),
    ),
    _Gate("A", _shape("AIza"), _shape("AKIA", "ASIA", then="[A-Z0-9]{16}")),
    _Gate("J", _shape("eyJ", then=r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*")),
    _Gate("G", _shape("SG.", then=r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}")),
    _Gate("9", _shape("ya29.")),
)
"""The narrower prefixes of a provider need no place of their own: sk-ant- and sk-proj- are sk-."""

_BEARER = _around("earer ", r"[Bb]earer +" + _CREDENTIAL)
_BASIC = _around("asic ", r"[Bb]asic +" + _CREDENTIAL)
SCHEMES = ("bearer", "basic")
"""Words whose next word is a credential."""

_SHAPES = (*(shape for gate in _GATES for shape in gate.shapes), _BEARER, _BASIC)
OPENERS = tuple(opener for shape in _SHAPES for opener in shape.openers)
KEY_BEGINS = "-----BEGIN "
KEY_ENDS = re.compile("-----END [A-Z0-9 ]*-----")
_BEGIN_WORDS = (*(opener for opener in OPENERS if opener[0].isalnum()), "Bearer ", "bearer ", "Basic ", "basic ")
_HALF_WORDS = frozenset(opener[:size] for opener in _BEGIN_WORDS for size in range(1, len(opener)))
_LONGEST_HALF = max(map(len, _HALF_WORDS))
_HALVES = tuple(opener[:size] for opener in ("://", KEY_BEGINS) for size in range(1, len(opener)))


def shapes_in(text: str) -> list[Shape]:
    """The shapes whose opener is in the text; mostly none."""
    shapes = []
    for gate in _GATES:
        shapes += gate.shapes_in(text)
    if "earer " in text:
        shapes.append(_BEARER)
    if "asic " in text:
        shapes.append(_BASIC)
    return shapes


def may_go_on(word: str) -> bool:
    """True if this end of a text may be the beginning of a token."""
    if word.endswith(_HALVES) or any(opener in word for opener in OPENERS):
        return True
    for size in range(1, min(len(word), _LONGEST_HALF) + 1):
        if word[-size:] in _HALF_WORDS and not word[-size - 1 : -size].isalnum():
            return True
    return False


def is_token(value: str) -> bool:
    """True if the whole value is one token."""
    return any(not shape.strict.groups and shape.strict.fullmatch(value) for shape in shapes_in(value))
