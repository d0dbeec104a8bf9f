"""openapi.json and its page say what the routes say now, and say it so that clients can be made from it."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from jsonschema import Draft202012Validator

from flowledger.api import catalog, document, problems
from flowledger.api.document import operation_id, operations
from flowledger.settings import Settings
from tests.docs.pages import ROOT, script

COMMITTED: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text())
OPERATIONS = dict(operations(COMMITTED))


@pytest.mark.parametrize("path", ["openapi.json", "docs/reference/api.md"])
def test_a_generated_file_is_what_the_routes_say_now(path):
    assert (ROOT / path).read_text() == script("openapi").files()[ROOT / path], "run `make docs`"


def test_the_document_says_what_the_running_server_says(postgres):
    from tests.api.serving import served

    with served(postgres) as server, server.as_() as anybody:
        assert anybody.get("/api/v1/openapi.json").json() == COMMITTED


def test_a_login_does_not_change_the_document():
    """It is the same for `flowledger up` and `flowledger server`."""
    from flowledger.server import application

    assert application(Settings(), "", has_login=True).openapi() == COMMITTED


def test_each_operation_has_a_name_of_its_own_that_begins_with_what_it_does():
    names = [one["operationId"] for one in OPERATIONS.values()]
    assert len(set(names)) == len(names) >= 18
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert {"list_executions", "show_execution", "create_execution", "show_execution_timeline"} <= set(names)


def untold(made: dict[str, Any]) -> list[str]:
    """Operations and parameters that nothing is said about, and tags that are not explained."""
    tags = {tag["name"] for tag in made["tags"] if tag["description"]}
    found = []
    for where, operation in operations(made):
        if not operation.get("description") or not set(operation.get("tags", ["-"])) <= tags:
            found.append(where)
        found += [
            f"{where} {given['name']}"
            for given in operation.get("parameters", ())
            if not given.get("description") and not is_plain(given, made)
        ]
    return found


def is_plain(given: dict[str, Any], made: dict[str, Any]) -> bool:
    """Names that say it all beside their values."""
    schema = given["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    return bool(
        {"enum", "format"} & {**schema, **made["components"]["schemas"].get(name, {})}.keys()
        or given["name"] in ("limit", "after", "flow")
    )


def test_every_operation_and_parameter_is_explained():
    assert untold(COMMITTED) == []


def without_problems(made: dict[str, Any]) -> list[str]:
    """Operations that lack a refusal which anything like them may answer with."""
    return [
        where
        for where, operation in operations(made)
        if not {str(status) for status in document.ALWAYS} <= operation["responses"].keys()
        or ("security" in operation and not {"401", "403", "429", "503"} <= operation["responses"].keys())
        or ("requestBody" in operation and not {"413", "415", "422"} <= operation["responses"].keys())
    ]


def test_every_operation_tells_how_it_refuses():
    assert without_problems(COMMITTED) == []
    refusals = {
        answer["$ref"]
        for operation in OPERATIONS.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
    }
    assert {ref.rpartition("/")[2] for ref in refusals} <= COMMITTED["components"]["responses"].keys()


def test_everything_needs_a_token_but_what_tells_of_the_server_alone():
    open_ = {operation["operationId"] for operation in OPERATIONS.values() if "security" not in operation}
    assert open_ <= {"show_health", "show_readiness", "show_metrics"}
    assert COMMITTED["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_every_example_fits_its_schema():
    examples = [
        (f"#/components/schemas/{name}", example)
        for name, schema in COMMITTED["components"]["schemas"].items()
        for example in schema.get("examples", ())
    ]
    examples += [
        ("#/components/schemas/ProblemShape", told["value"])
        for response in COMMITTED["components"]["responses"].values()
        for told in response["content"][problems.MEDIA_TYPE]["examples"].values()
    ]
    assert len(examples) > 30
    for ref, example in examples:
        Draft202012Validator({"$ref": ref, "components": COMMITTED["components"]}).validate(example)


def codes_in(text: str) -> set[str]:
    """Codes that a module gives to problems which no error of the ledger's stands behind."""
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and len(node.args) > 1)
    return {
        str(call.args[1].value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "problem" and isinstance(call.args[1], ast.Constant)
    }


def test_every_problem_is_in_the_catalog_with_its_status():
    told = {code for file in (ROOT / "src/flowledger/api").glob("*.py") for code in codes_in(file.read_text())}
    assert {"body_too_large", "host_refused", "internal"} <= told
    assert told | {kind.code for kind, _ in problems.STATUSES} == {one.code for one in catalog.catalog()}


class TestTheCheckersFindWhatTheyShould:
    @pytest.fixture
    def made(self) -> dict[str, Any]:
        """A document with one operation that says nothing."""
        app, router = FastAPI(generate_unique_id_function=operation_id), APIRouter(tags=["tokens", "unheard"])

        @router.get("/x")
        def show(asked: str) -> None:
            """Something."""

        app.include_router(router)
        return document.document(app)

    def test_a_parameter_and_a_tag_that_are_not_explained(self, made):
        assert untold(made) == ["GET /x", "GET /x asked"]

    def test_an_operation_that_does_not_tell_how_it_refuses(self, made):
        del made["paths"]["/x"]["get"]["responses"]["421"]
        assert without_problems(made) == ["GET /x"]

    def test_a_problem_of_a_module(self):
        assert codes_in('problem(404, "gone", "x")\nother(1, "b")\nproblem(status, code)') == {"gone"}

    def test_a_document_that_is_out_of_date(self, monkeypatch):
        monkeypatch.setitem(document.TAGS, "tokens", "Changed.")
        assert script("openapi").files()[ROOT / "openapi.json"] != (ROOT / "openapi.json").read_text()
