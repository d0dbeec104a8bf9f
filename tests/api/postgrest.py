"""Requests to PostgREST as the SQL that it makes of them (version 12): one transaction, the role and the claims set in
it, one statement whose CTE does the work and whose answer is JSON.

`Client` has the calls of supabase-py that the docs use, in front of the same SQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Json

Row = dict[str, Any]
Filter = tuple[str, str, Any]
"""Column or JSON path as `column->a->>b`, operator, value."""

_ANSWER = sql.SQL(
    "select {count} as total_result_set, pg_catalog.count(_postgrest_t) as page_total, "
    "coalesce(json_agg(_postgrest_t), '[]') as body, "
    "nullif(current_setting('response.headers', true), '') as response_headers, "
    "nullif(current_setting('response.status', true), '') as response_status "
    "from (select * from pgrst_source) _postgrest_t"
)
_OPERATORS = {"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ilike": "ilike"}


@dataclass(frozen=True)
class Answer:
    """`count` None: it was not asked for."""

    body: list[Row]
    count: int | None


@dataclass(frozen=True)
class PostgREST:
    """Asks as this user, or as nobody (role anon). Raises what Postgres raises, which PostgREST passes on."""

    connection: psycopg.Connection[Row]
    user: UUID | None
    role: str = "authenticated"
    schema: str = "public"

    def select(
        self,
        table: str,
        *filters: Filter,
        columns: Iterable[str] | None = None,
        embed: str | None = None,
        order: str | None = None,
        limit: int | None = None,
        count: bool = False,
    ) -> Answer:
        """`GET /table?...`; `count`: `Prefer: count=exact`. `embed`: `select=*,parent(*)` along the foreign key."""
        at = sql.Identifier(self.schema, table)
        listed = [sql.SQL("{}.{}").format(at, sql.Identifier(column)) for column in columns or ()]
        shown = sql.SQL(", ").join(listed) if listed else sql.SQL("{}.*").format(at)
        joined, where, values = sql.SQL(""), self._where(at, filters), [value for _, _, value in filters]
        if embed is not None:
            shown = sql.SQL("{}, row_to_json(parent.*) as {}").format(shown, sql.Identifier(embed))
            joined = sql.SQL(
                " left join lateral (select {0}.* from {0} where {0}.id = {1}.flow_id) as parent on true"
            ).format(sql.Identifier(self.schema, embed), at)
        sorting, bound = sql.SQL(""), sql.SQL("")
        if order is not None:
            column, _, direction = order.partition(".")
            sorting = sql.SQL(f" order by {{}} {direction}").format(sql.Identifier(self.schema, table, column))
        if limit is not None:
            bound = sql.SQL(" limit {} offset 0").format(sql.Literal(limit))
        source = sql.SQL("with pgrst_source as (select {} from {}{}{}{}{})").format(
            shown, at, joined, where, sorting, bound
        )
        counted = sql.SQL(", pgrst_source_count as (select 1 from {}{}) ").format(at, where) if count else sql.SQL(" ")
        return self._ask("GET", table, source + counted, [*values, *(values if count else ())], count=count)

    def insert(
        self,
        table: str,
        rows: Row | list[Row],
        *,
        returning: bool = True,
        on_conflict: str | None = None,
        merge: bool = False,
    ) -> Answer:
        """`POST /table`. With `on_conflict` an upsert, `Prefer: resolution=merge-duplicates` or `ignore-duplicates`."""
        names = sorted({name for row in (rows if isinstance(rows, list) else [rows]) for name in row})
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        conflict = sql.SQL("")
        if on_conflict is not None:
            changes = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names)
            action = sql.SQL("update set {}").format(changes) if merge else sql.SQL("nothing")
            conflict = sql.SQL(" on conflict ({}) do {}").format(sql.Identifier(on_conflict), action)
        source = sql.SQL("with pgrst_source as (insert into {} ({}) select {} from {}{} returning {}) ").format(
            sql.Identifier(self.schema, table),
            columns,
            sql.SQL(", ").join(sql.Identifier("pgrst_body", name) for name in names),
            self._body(table, names, is_list=isinstance(rows, list)),
            conflict,
            sql.SQL("{}.*").format(sql.Identifier(self.schema, table)) if returning else sql.SQL("1"),
        )
        return self._ask("POST", table, source, [Json(rows, dumps=_dumps)])

    def update(self, table: str, changes: Row, *filters: Filter, returning: bool = True) -> Answer:
        """`PATCH /table?...`"""
        names, at = sorted(changes), sql.Identifier(self.schema, table)
        source = sql.SQL("with pgrst_source as (update {} set {} from {}{} returning {}) ").format(
            at,
            sql.SQL(", ").join(sql.SQL("{0} = pgrst_body.{0}").format(sql.Identifier(name)) for name in names),
            self._body(table, names, is_list=False),
            self._where(at, filters),
            sql.SQL("{}.*").format(at) if returning else sql.SQL("1"),
        )
        return self._ask("PATCH", table, source, [Json(changes, dumps=_dumps), *(value for _, _, value in filters)])

    def delete(self, table: str, *filters: Filter) -> Answer:
        """`DELETE /table?...`"""
        at = sql.Identifier(self.schema, table)
        source = sql.SQL("with pgrst_source as (delete from {0}{1} returning {0}.*) ").format(
            at, self._where(at, filters)
        )
        return self._ask("DELETE", table, source, [value for _, _, value in filters])

    def rpc(self, function: str, types: Mapping[str, str], arguments: Row, *, scalar: bool = False) -> Any:
        """`POST /rpc/function`. `types` are those of its parameters, as PostgREST has them from the catalog."""
        typed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(types[name]))
            for name in arguments  # type: ignore[arg-type]
        )
        given = sql.SQL(", ").join(sql.SQL("{0} := pgrst_body.{0}").format(sql.Identifier(name)) for name in arguments)
        call = sql.SQL("{}({})").format(sql.Identifier(self.schema, function), given)
        source = sql.SQL(
            "with pgrst_source as (select {} from (select %s::json as json_data) pgrst_payload, lateral (select * from "
            "json_to_record(pgrst_payload.json_data) as _({}) limit 1) pgrst_body, lateral {} pgrst_call) "
        ).format(
            sql.SQL("pgrst_call.pgrst_scalar") if scalar else sql.SQL("pgrst_call.*"),
            typed,
            sql.SQL("(select {} as pgrst_scalar)").format(call) if scalar else call,
        )
        (row,) = self._ask("POST", f"rpc/{function}", source, [Json(arguments, dumps=_dumps)]).body
        return row["pgrst_scalar"] if scalar else row

    def _body(self, table: str, names: list[str], *, is_list: bool) -> sql.Composed:
        columns = self.connection.execute(
            "select attname as name, format_type(atttypid, atttypmod) as type from pg_attribute "
            "where attrelid = %s::regclass",
            [f'"{self.schema}"."{table}"'],
        )
        types = {column["name"]: column["type"] for column in columns}
        typed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(types[name])) for name in names
        )
        return sql.SQL(
            "(select %s::json as json_data) pgrst_payload, "
            "lateral (select {} from {}(pgrst_payload.json_data) as _({})) pgrst_body"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL("json_to_recordset" if is_list else "json_to_record"),
            typed,
        )

    def _where(self, at: sql.Identifier, filters: tuple[Filter, ...]) -> sql.Composable:
        if not filters:
            return sql.SQL("")
        return sql.SQL(" where ") + sql.SQL(" and ").join(_condition(at, one) for one in filters)

    def _ask(self, method: str, path: str, source: sql.Composed, values: list[Any], *, count: bool = False) -> Answer:
        claims = {"role": self.role, **({} if self.user is None else {"sub": str(self.user)})}
        locals_ = {
            "search_path": f'"{self.schema}", "public"',
            "role": self.role,
            "request.jwt.claims": json.dumps(claims),
            "request.method": method,
            "request.path": f"/{path}",
            "request.headers": '{"accept": "application/json"}',
            "request.cookies": "{}",
        }
        counting = sql.SQL("(select pg_catalog.count(*) from pgrst_source_count)" if count else "null::bigint")
        with self.connection.transaction():
            sets = ", ".join(["set_config(%s, %s, true)"] * len(locals_))
            self.connection.execute(f"select {sets}", [part for one in locals_.items() for part in one])
            row = self.connection.execute(source + _ANSWER.format(count=counting), values).fetchone()
        assert row is not None
        return Answer(row["body"], row["total_result_set"])


def _condition(at: sql.Identifier, one: Filter) -> sql.Composable:
    name, operator, _ = one
    column, *path = name.replace("->>", "->").split("->")
    place: sql.Composable = sql.SQL("{}.{}").format(at, sql.Identifier(column))
    if path:
        *inner, last = path
        steps = [sql.SQL("->{}").format(sql.Literal(step)) for step in inner]
        place = sql.SQL("to_jsonb({}){}->>{}").format(place, sql.SQL("").join(steps), sql.Literal(last))
    if operator == "in":
        return sql.SQL("{} = any (%s)").format(place)
    return sql.SQL(f"{{}} {_OPERATORS[operator]} %s").format(place)


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)


# -- supabase-py ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request as supabase-py's builder gathers it."""

    rest: PostgREST
    table: str
    act: Callable[[Asked], Answer]
    filters: tuple[Filter, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    is_single: bool = False

    def eq(self, column: str, value: Any) -> Asked:
        return replace(self, filters=(*self.filters, (column, "eq", value)))

    def order(self, column: str, *, desc: bool = False) -> Asked:
        return replace(self, given={**self.given, "order": f"{column}.{'desc' if desc else 'asc'}"})

    def limit(self, rows: int) -> Asked:
        return replace(self, given={**self.given, "limit": rows})

    def single(self) -> Asked:
        return replace(self, is_single=True)

    def execute(self) -> SimpleNamespace:
        answer = self.act(self)
        if self.is_single:
            (row,) = answer.body
            return SimpleNamespace(data=row, count=answer.count)
        return SimpleNamespace(data=answer.body, count=answer.count)


@dataclass(frozen=True)
class Table:
    rest: PostgREST
    name: str

    def select(self, columns: str = "*", *, count: str | None = None) -> Asked:
        names = None if columns == "*" else [name.strip() for name in columns.split(",")]
        return Asked(
            self.rest,
            self.name,
            lambda asked: self.rest.select(
                self.name, *asked.filters, columns=names, count=count == "exact", **asked.given
            ),
        )

    def insert(self, row: Row | list[Row]) -> Asked:
        return Asked(self.rest, self.name, lambda _: self.rest.insert(self.name, row))


FUNCTIONS: dict[str, dict[str, str]] = {
    "kickoff": {"flow_key": "text", "inputs": "jsonb", "board_meeting_id": "uuid", "metadata": "jsonb"},
    "cancel": {"execution": "uuid", "reason": "text"},
}


@dataclass(frozen=True)
class Client:
    """A supabase-py client with a signed-in user, as far as the docs use one."""

    rest: PostgREST

    @property
    def auth(self) -> SimpleNamespace:
        user = SimpleNamespace(id=str(self.rest.user))
        return SimpleNamespace(get_user=lambda: SimpleNamespace(user=user))

    def table(self, name: str) -> Table:
        return Table(self.rest, name)

    def schema(self, name: str) -> Client:
        return Client(replace(self.rest, schema=name))

    def rpc(self, function: str, arguments: Row) -> SimpleNamespace:
        def execute() -> SimpleNamespace:
            scalar = function == "cancel"
            return SimpleNamespace(data=self.rest.rpc(function, FUNCTIONS[function], arguments, scalar=scalar))

        return SimpleNamespace(execute=execute)
