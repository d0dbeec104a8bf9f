"""A flow that takes the secrets of its environment to every place that a flow can reach."""
# ruff: noqa: T201 - flows print, as users do

import base64
import json
import logging
import os
import subprocess
import sys
import time
from datetime import datetime
from urllib.parse import quote, quote_plus, unquote, urlsplit

from crewai import LLM
from crewai.events import crewai_event_bus
from crewai.events.types.tool_usage_events import ToolUsageErrorEvent, ToolUsageFinishedEvent, ToolUsageStartedEvent
from crewai.flow import Flow, listen, start
from pydantic import BaseModel

CUSTOMER = "KD-" + "12345678"


class Nested(Flow):
    """Has the secrets in its state, its result and its error."""

    @start()
    def only(self):
        print("nested", self.state["secrets"])
        raise LookupError("nested " + _first_line_and_all(self.state["secrets"]))


class Leaks(Flow):
    """`names` are those of variables, `control` is not in the environment, `how` says how it ends."""

    @start()
    def spread(self):
        later = self.state["later"]
        for name in later:
            os.environ[name] = later[name][::-1]
        secrets = [*_secrets([*self.state["names"], *later]), self.state["control"][::-1], CUSTOMER]
        self.state["kept"] = secrets
        self.state["by secret"] = {secret: {"value": secret} for secret in secrets}
        self.state["bytes"] = [secret.encode() for secret in secrets]
        self.state["thing"] = Thing(secrets)
        self._print(secrets)
        self._tell_events(secrets)
        self._ask(secrets)
        return secrets

    @listen(spread)
    def end(self, secrets):
        how = self.state["how"]
        if how == "large":
            # So that the preview shows what is large.
            for name in ("names", "later", "kept", "by secret", "bytes", "thing"):
                self.state.pop(name)
        return ENDS[how](secrets)

    def _print(self, secrets):
        logging.basicConfig(level=logging.INFO)
        for secret in secrets:
            for form in _forms(secret):
                print(form)
                print("oops", form, file=sys.stderr)
            logging.getLogger("leaky").warning("using %s", secret)
            os.write(1, secret.encode("utf-16-le") + b"\n")
        for secret in secrets[:10]:
            for letter in secret:
                print(letter, end="", flush=True)
            print(flush=True)
        show = "import os, sys; [print('sub', os.environ.get(name)) for name in sys.argv[1:]]"
        subprocess.run([sys.executable, "-c", show, *self.state["names"]], check=True)
        subprocess.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *secrets], check=True)

    def _tell_events(self, secrets):
        now = datetime.now()  # noqa: DTZ005 - what CrewAI gives
        for secret in secrets:
            tool = {"tool_name": f"tool {secret}", "tool_args": {secret: secret, "json": json.dumps({"key": secret})}}
            crewai_event_bus.emit(self, ToolUsageStartedEvent(**tool))
            crewai_event_bus.emit(
                self, ToolUsageFinishedEvent(**tool, started_at=now, finished_at=now, output=f"said {secret}")
            )
            crewai_event_bus.emit(self, ToolUsageErrorEvent(**tool, error=f"no such tool: {secret}"))
            # Across the place where a preview ends.
            long = {**tool, "tool_args": f"{'.' * 490}{secret}"}
            crewai_event_bus.emit(self, ToolUsageStartedEvent(**long))
            crewai_event_bus.emit(self, ToolUsageErrorEvent(**long, error=f"{'.' * 495}{secret}"))

    def _ask(self, secrets):
        llm = LLM(model="openai/gpt-4o-mini")
        for secret in secrets[:20] + secrets[-2:]:
            print("answer", llm.call(f"{secret} is what I was given {'.' * 470}{secret}"))
        try:
            Nested().kickoff(inputs={"secrets": secrets})
        except LookupError as error:
            print("nested", error)


class Preset(BaseModel):
    api_key: str = next((value for name, value in os.environ.items() if name.endswith("_API_KEY")), "none")
    amount: int


class Presets(Flow[Preset]):
    """Has a secret among the defaults of its inputs."""

    @start()
    def only(self):
        return self.state.api_key


class Thing:
    """What is shown by its repr."""

    def __init__(self, secrets):
        self._secrets = secrets

    def __repr__(self):
        # One of them lies across the thousandth character.
        return f"<Thing {' ' * (980 - len(self._secrets[0]))}{' '.join(self._secrets)}>"


def _secrets(names):
    """The values, and the password of an address alone."""
    secrets = []
    for name in names:
        value = os.environ[name]
        password = urlsplit(value).password if "://" in value else None
        secrets += [value] if password is None else [value, unquote(password)]
    return secrets


def _forms(secret):
    data = secret.encode()
    yield from (secret, repr(secret), json.dumps({"key": secret}), json.dumps({"key": secret}, ensure_ascii=False))
    yield from (quote(secret), quote(secret, safe=""), quote_plus(secret), data.hex(), repr(data))
    yield base64.b64encode(data).decode()
    for user in ("a", "ab", "abc"):
        yield f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"
        yield base64.urlsafe_b64encode(f"{user}:{secret}:".encode()).decode()


def _first_line_and_all(secrets):
    return f"first {secrets[0]} {secrets[-2]}\n" + "\n".join(secrets)


def _raise(secrets):
    """In the message, its cause, and the name of the type."""
    kind = type("Bad" + secrets[-2], (RuntimeError,), {})
    try:
        _fail(secrets)
    except ValueError as cause:
        raise kind(_first_line_and_all(secrets) + "y" * 20_000 + secrets[0]) from cause


def _fail(secrets):
    raise ValueError("cause " + _first_line_and_all(secrets))


def _exit(secrets):
    sys.exit("exit " + _first_line_and_all(secrets))


def _hang(secrets):
    print("hangs", *secrets, flush=True)
    time.sleep(600)


def _return_more_than_fits(secrets):
    """With secrets across every place where it may be cut."""
    forms = " ".join(secrets[::-1])
    return [forms, *(f"{'.' * shift}{secrets[shift % len(secrets)]}" for shift in range(800)), forms * 50]


def _print_more_than_fits(secrets):
    for round_ in range(200):
        print(f"{'.' * (round_ % 37)}" + " ".join(secrets))
    return "printed"


ENDS = {
    "returns": lambda secrets: {"list": secrets, "by secret": dict.fromkeys(secrets, 1), "json": json.dumps(secrets)},
    "raises": _raise,
    "exits": _exit,
    "hangs": _hang,
    "large": _return_more_than_fits,
    "floods": _print_more_than_fits,
}
