"""Flows whose outcome no JSON column takes as it is. `inputs["how"]` names it; `pickled` brings one of your own."""

import base64
import datetime
import decimal
import enum
import math
import pickle
import threading

from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent, LLMCallType
from crewai.flow import Flow, start
from pydantic import BaseModel, model_serializer


def _nested(depth):
    value = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def _cycle():
    value = {"name": "loop"}
    value["self"] = value
    return value


class Mute:
    def __repr__(self):
        raise RuntimeError("no")


class Colour(enum.Enum):
    RED = "red"


class Liar(dict):
    def items(self):
        raise RuntimeError("no")


class Model(BaseModel):
    amount: int = 3

    @model_serializer
    def _refuse(self):
        raise ValueError("no")


RESULTS = {
    "NUL in text": lambda: "a\x00b",
    "NUL in a key": lambda: {"a\x00b": 1},
    "lone surrogate in text": lambda: "a\ud800b",
    "lone surrogate in a key": lambda: {"a\udfffb": 1},
    "keys that become one": lambda: {"a": 1, "a\x00": 2, 7: 3, "7": 4},
    "NaN": lambda: math.nan,
    "infinities": lambda: [math.inf, -math.inf],
    "number of 140,000 digits": lambda: 10**140_000,
    "number of 5,000 digits": lambda: -(10**5000),
    "decimal beyond all numbers": lambda: decimal.Decimal("1e200000"),
    "nested 150 deep": lambda: _nested(150),
    "nested 20,000 deep": lambda: _nested(20_000),
    "cycle": _cycle,
    "5 MB of text": lambda: "x" * 5_000_000,
    "1,500,000 values": lambda: [0] * 1_500_000,
    "bytes": lambda: b"\xff\x00",
    "keys of every kind": lambda: {None: 1, 1.5: 2, (1, 2): 3, b"k": 4},
    "set": lambda: {1},
    "generator inside": lambda: {"rows": (n for n in range(3))},
    "lock": threading.Lock,
    "object without a repr": Mute,
    "dict that lies": lambda: Liar(a=1),
    "model that refuses": Model,
    "enum, date and decimal": lambda: [Colour.RED, datetime.date(2026, 1, 2), decimal.Decimal("1.50")],
}


class Furious(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def _raise(error):
    raise error


ERRORS = {
    "error type of 300 characters": lambda: _raise(type("E" * 300, (Exception,), {})("long")),
    "error type with a surrogate": lambda: _raise(type("E", (Exception,), {"__qualname__": "E\ud800"})("odd")),
    "error of 1 MB with NUL": lambda: _raise(ValueError("a\x00" + "b" * 1_000_000)),
    "error without words": lambda: _raise(Furious()),
}

TOKENS = {
    "tokens beyond 2^31": 2**35,
    "tokens beyond all bounds": 2**60,
    "tokens below zero": -5,
    "tokens that are no number": "many",
}


class Outcomes(Flow):
    @start()
    def only(self):
        how = self.state.pop("how")
        if how == "pickled":
            return pickle.loads(base64.b64decode(self.state.pop("pickled")))
        if how in TOKENS:
            usage = {"prompt_tokens": TOKENS[how], "completion_tokens": 0}
            event = LLMCallCompletedEvent(
                model="stub", response="", call_type=LLMCallType.LLM_CALL, call_id=how, usage=usage
            )
            crewai_event_bus.emit(self, event)
            return "counted"
        return {**RESULTS, **ERRORS}[how]()
