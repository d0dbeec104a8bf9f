"""Two hundred secrets of an environment leave the flow in every way there is, and none is stored, logged or shown."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote
from uuid import UUID

import pytest
from benchmarks.stage import pg_binary, pg_environment

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from tests.acceptance.product import Product, WorkerProcess, emptied

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from stub_llm import StubServer, environment

pytestmark = pytest.mark.timeout(400)

LEAKY = Path(__file__).parent / "leaky"
NUMBER = 200
IN_DOTENV, SET_LATER = 5, 5
NAMES = (
    "CANARY_{}_API_KEY", "CANARY_{}_TOKEN", "canary_{}_secret", "Canary{}Password", "CANARY_{}_PASSWD",
    "CANARY_{}_PASS", "CANARY_{}_CREDENTIALS", "CANARY_{}_AUTH", "CANARY_{}_PRIVATE_KEY", "CANARY_{}_DSN",
    "CANARY_{}_COOKIE", "CANARY_{}_SESSION", "CANARY_{}_SIGNATURE", "CANARY_{}_WEBHOOK", "CANARY_{}_CONNECTION_STRING",
    "CANARY_{}_DATABASE_URL", "CANARY_{}",
)  # fmt: skip
VALUES = (
    "{}", 'a"b\'{}', "back\\slash{}\\n", "100%{}%20%", "ü€😀{}é", "/slash/{}+plus/=", "two words {}", "{}==",
    "<&>{}';--", "$({})`#", "first line {}\nsecond line of it", "\t{}?a=b&c=d", "{}",
)  # fmt: skip
ENDS = {"returns": "completed", "raises": "failed", "exits": "failed", "large": "completed", "floods": "completed"}
NOT_IN_THE_ENVIRONMENT = "not-in-the-environment"


@dataclass(frozen=True)
class Canary:
    """A variable, and the part of its value that must not be found anywhere. No encoding escapes its letters."""

    name: str
    value: str
    core: str

    @classmethod
    def hatch(cls, number: int) -> Canary:
        core = secrets.token_hex(12)
        name, value = NAMES[number % len(NAMES)].format(number), VALUES[number % len(VALUES)].format(core)
        if name.endswith("_URL"):
            value = f"postgres://app:{quote(value, safe='')}@db.example.com/app"
        elif name == f"CANARY_{number}":
            value = core = f"ghp_{core}{secrets.token_hex(6)}"
        return cls(name, value, core)


def forms_of(core: str) -> list[bytes]:
    """Either half of it, itself and as it looks in base64 and hexadecimal wherever it begins."""
    forms = []
    for half in (core[: len(core) // 2].encode(), core[len(core) // 2 :].encode()):
        forms += [half, half.hex().encode(), half.hex().upper().encode()]
        for before in range(3):
            text = base64.b64encode(bytes(before) + half)
            forms.append(text[(0, 2, 3)[before] : (before + len(half)) * 8 // 6])
    return forms


def found_in(text: bytes, core: str) -> list[bytes]:
    return [form for form in forms_of(core) if form in text]


@dataclass
class Aviary:
    """The canaries, the worker that has them in its environment, and what became of each run."""

    product: Product
    worker: WorkerProcess
    canaries: list[Canary]
    control: str
    executions: dict[str, UUID] = field(default_factory=dict)

    @cached_property
    def dump(self) -> bytes:
        """The whole database, as text."""
        done = subprocess.run(
            [pg_binary("pg_dump"), "--data-only"],
            env=pg_environment(self.product.postgres.url("flowledger")),
            capture_output=True,
            check=True,
            timeout=120,
        )
        return done.stdout

    @cached_property
    def shown(self) -> bytes:
        """What commands say about the runs and the flows."""
        said = []
        for id_ in self.executions.values():
            for command in (["show", id_, "--json"], ["show", id_], ["logs", id_]):
                done = self.product.call("executions", *command)
                assert done.returncode == 0, done.stderr
                said += [done.stdout, done.stderr]
        said.append(self.product.call("executions", "list", "--json").stdout)
        with patch.dict(os.environ, {canary.name: canary.value for canary in self.canaries}):
            for command in (["flows", "list"], ["flows", "list", "--json"], ["flows", "show", "presets", "--json"]):
                done = self.product.call(*command)
                said += [done.stdout, done.stderr]
        return "".join(said).encode()


@pytest.fixture(scope="module")
def aviary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aviary]:
    canaries = [Canary.hatch(number) for number in range(NUMBER)]
    control = secrets.token_hex(12)
    place = tmp_path_factory.mktemp("aviary")
    project = place / "leaky"
    shutil.copytree(LEAKY, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
    dotenv, later, inherited = canaries[:IN_DOTENV], canaries[-SET_LATER:], canaries[IN_DOTENV:-SET_LATER]
    (project / ".env").write_text("".join(f"{c.name}='{_for_dotenv(c.value)}'\n" for c in dotenv))
    _hard_code(project, inherited[0], control)
    with EmbeddedPostgres.start(place / "postgres") as postgres, StubServer() as stub:
        migrate(postgres.url("flowledger"))
        product = emptied(postgres, project)
        known = {**environment(stub), **{canary.name: canary.value for canary in inherited}}
        with (
            patch.dict(os.environ, known),
            product.worker(
                log=place / "log",
                slots=2,
                poll_seconds=1,
                grace_seconds=1,
                max_log_bytes=400_000,
                max_output_bytes=400_000,
            ) as worker,
        ):
            aviary = Aviary(product, worker, canaries, control)
            names = [canary.name for canary in (*inherited, *dotenv)]
            set_later = {canary.name: canary.value[::-1] for canary in later}
            given = {"names": names, "later": set_later, "control": control[::-1]}
            for how in ENDS:
                aviary.executions[how] = product.kickoff("leaks", how=how, **given)
            aviary.executions["hangs"] = product.kickoff("leaks", timeout=15, how="hangs", **given)
            aviary.executions["hard-coded"] = product.kickoff("hard_coded")
            aviary.executions["presets"] = product.kickoff("presets", amount=1)
            for execution in aviary.executions.values():
                product.ended(execution, seconds=200)
            yield aviary


def _for_dotenv(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _hard_code(project: Path, canary: Canary, control: str) -> None:
    """In the source of a flow, and so in a line of its stack."""
    (project / "src" / "leaky" / "hard.py").write_text(
        "from crewai.flow import Flow, start\n\n\n"
        "class HardCoded(Flow):\n    @start()\n    def only(self):\n"
        f"        raise RuntimeError({canary.value!r}, {control!r})\n"
    )


@pytest.mark.parametrize("how", [*ENDS, "hangs", "hard-coded"])
def test_a_run_ends_as_it_would_without_redaction(aviary: Aviary, how: str) -> None:
    row = aviary.product.row(aviary.executions[how])
    expected = {"hangs": "timeout", "hard-coded": "failed"}
    assert row["status"] == {**ENDS, **expected}[how], row["error_stack"]


def test_no_canary_is_in_the_database(aviary: Aviary) -> None:
    assert {canary.name: found for canary in aviary.canaries if (found := found_in(aviary.dump, canary.core))} == {}


def test_no_canary_is_in_the_workers_log(aviary: Aviary) -> None:
    log = aviary.worker.log.read_bytes()
    assert {canary.name: found for canary in aviary.canaries if (found := found_in(log, canary.core))} == {}


def test_no_canary_is_in_what_commands_say(aviary: Aviary) -> None:
    assert {canary.name: found for canary in aviary.canaries if (found := found_in(aviary.shown, canary.core))} == {}


def test_each_canary_has_left_its_mark(aviary: Aviary) -> None:
    """Nothing was left out: where a secret was, its variable's name is."""
    logs = aviary.product.logs(aviary.executions["returns"])
    output = str(aviary.product.row(aviary.executions["returns"])["output_state"])
    assert [canary.name for canary in aviary.canaries if f"[redacted {canary.name}]" not in logs] == []
    assert [canary.name for canary in aviary.canaries if f"[redacted {canary.name}]" not in output] == []


def test_a_flows_own_pattern_is_kept_out(aviary: Aviary) -> None:
    assert b"KD-12345678" not in aviary.dump
    assert b"KD-12345678" not in aviary.shown


class TestTheSearchFindsWhatIsThere:
    """The control: a value that is not in the environment takes every way that the canaries take."""

    @pytest.mark.parametrize(("how", "column"), [
        ("returns", "output_state"), ("raises", "error_type"), ("raises", "error_message"), ("raises", "error_stack"),
        ("raises", "output_state"), ("exits", "output_state"),
        ("hangs", "output_state"), ("large", "output_state"), ("hard-coded", "error_stack"),
    ])  # fmt: skip
    def test_in_each_column(self, aviary: Aviary, how: str, column: str) -> None:
        row = aviary.product.row(aviary.executions[how])
        assert found_in(str(row[column]).encode(), aviary.control)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    @pytest.mark.parametrize("how", ["returns", "raises", "exits", "hangs", "floods"])
    def test_in_each_stream_in_every_form(self, aviary: Aviary, how: str, stream: str) -> None:
        logs = aviary.product.logs(aviary.executions[how], stream)
        assert len(found_in(logs.encode(), aviary.control)) >= 8

    @pytest.mark.parametrize("column", ["name", "fields"])
    def test_in_the_timeline(self, aviary: Aviary, column: str) -> None:
        told = aviary.product.sql(f"select string_agg({column}::text, ' ') as told from flowledger.timeline")[0]["told"]
        assert found_in(told.encode(), aviary.control)

    def test_in_the_source_of_a_flow(self, aviary: Aviary) -> None:
        source = aviary.product.sql("select python_code as told from public.crewai_flows where flow_key = 'hard_coded'")
        assert found_in(str(source).encode(), aviary.control)

    def test_in_the_dump_and_in_what_commands_say(self, aviary: Aviary) -> None:
        assert len(found_in(aviary.dump, aviary.control)) >= 8
        assert len(found_in(aviary.shown, aviary.control)) >= 8

    def test_in_the_workers_log(self, aviary: Aviary) -> None:
        assert NOT_IN_THE_ENVIRONMENT in aviary.worker.log.read_text()
