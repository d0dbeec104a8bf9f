"""A traceback as the flow's author wants to read it: the project's own frames and the one that raised.

Frames of CrewAI, asyncio and other libraries between them are counted, not listed. Causes, contexts and the members of
exception groups are told as Python tells them.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Iterator
from types import CodeType, TracebackType

from flowledger.runner.encode import clean
from flowledger.runner.redact import Redactor

_MOST_ERRORS = 20
_MOST_FRAMES = 60
_LONGEST_STACK = 65_536
_LONGEST_MESSAGE = 4_000

_Frame = tuple[CodeType, int]


def qualified_name(kind: type) -> str:
    """`module.QualName`; builtins without their module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} without a message>"


def describe(error: BaseException, roots: tuple[str, ...], redactor: Redactor) -> str:
    """The whole story, causes first, without secrets. `roots` are the directories whose files are the project's own."""
    parts: list[str] = []
    for link, bridge in _chain(error, roots):
        parts.append(_one(link, roots, redactor))
        if bridge:
            parts.append(bridge)
    return redactor.cut(clean("\n\n".join(parts)), _LONGEST_STACK)


def fingerprint(error: BaseException, roots: tuple[str, ...]) -> str:
    """The same for the same error in the same place of the project, whatever its message and its lines' numbers.

    Without a frame of the project's, where it was raised counts instead.
    """
    own = [_place(code, roots) for code, _ in _walk(error.__traceback__) if _is_own(code, roots)]
    frames = own or [_place(code, roots) for code, _ in _walk(error.__traceback__)][-1:]
    return hashlib.sha256("\n".join((qualified_name(type(error)), *frames)).encode(errors="replace")).hexdigest()[:12]


def place(error: BaseException, roots: tuple[str, ...]) -> str | None:
    """The innermost frame of the project's own, as `file:function`; None when there is none."""
    own = [_place(code, roots) for code, _ in _walk(error.__traceback__) if _is_own(code, roots)]
    return own[-1][:500] if own else None


def _place(code: CodeType, roots: tuple[str, ...]) -> str:
    file = code.co_filename
    root = max((root for root in roots if file.startswith(root)), key=len, default="")
    return f"{file[len(root) :]}:{getattr(code, 'co_qualname', code.co_name)}"


def _chain(error: BaseException, roots: tuple[str, ...]) -> list[tuple[BaseException, str]]:
    """The error and what led to it, oldest first, each with the sentence that leads to the next.

    A mere context without a frame of the project's is left out: CrewAI's kickoff runs inside an `except` of its own,
    so that every flow's error would seem to follow "no running event loop".
    """
    links, seen = [(error, "")], {id(error)}
    current: BaseException = error
    while len(seen) < _MOST_ERRORS:
        if current.__cause__ is not None:
            older, bridge = current.__cause__, "The above exception was the direct cause of the following exception:"
        elif current.__context__ is not None and not current.__suppress_context__:
            older, bridge = current.__context__, "During handling of the above exception, another exception occurred:"
        else:
            break
        if id(older) in seen:
            break
        seen.add(id(older))
        if older is current.__cause__ or any(_is_own(code, roots) for code, _ in _walk(older.__traceback__)):
            links.append((older, bridge))
        current = older
    return links[::-1]


def _one(error: BaseException, roots: tuple[str, ...], redactor: Redactor) -> str:
    lines = ["Traceback (most recent call last):", *_frames(error.__traceback__, roots)]
    lines.append(f"{qualified_name(type(error))}: {redactor.cut(clean(message_of(error)), _LONGEST_MESSAGE)}")
    for number, member in enumerate(getattr(error, "exceptions", ())[:_MOST_ERRORS], 1):
        if isinstance(member, BaseException):
            short = f"{qualified_name(type(member))}: {redactor.text(clean(message_of(member)))}"
            told = describe(member, roots, redactor) if number == 1 else short
            lines.append(f"  {number}. " + told.replace("\n", "\n     "))
    return "\n".join(lines)


def _frames(trace: TracebackType | None, roots: tuple[str, ...]) -> Iterator[str]:
    frames = list(_walk(trace))
    kept = [index for index, frame in enumerate(frames) if _is_own(frame[0], roots) or index == len(frames) - 1]
    if len(kept) > _MOST_FRAMES:
        kept = kept[: _MOST_FRAMES // 2] + kept[-_MOST_FRAMES // 2 :]
    previous = -1
    for index in kept:
        if left_out := index - previous - 1:
            yield f"  ... {left_out} frame{'s' * (left_out > 1)} left out"
        yield from _frame(frames[index])
        previous = index


def _walk(trace: TracebackType | None) -> Iterator[_Frame]:
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next


def _is_own(code: CodeType, roots: tuple[str, ...]) -> bool:
    file = code.co_filename
    return file.startswith(roots) and "/site-packages/" not in file and "/.venv/" not in file


def _frame(frame: _Frame) -> Iterator[str]:
    code, line = frame
    name = getattr(code, "co_qualname", code.co_name)
    yield f'  File "{code.co_filename}", line {line}, in {name}'
    if source := linecache.getline(code.co_filename, line).strip():
        yield f"    {source}"
