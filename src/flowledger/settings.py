"""Settings, read once. Every default is named here, and docs/reference/settings.md lists each.

A value comes from a flag, else the environment (`FLOWLEDGER_...`), else `[tool.flowledger]` in the pyproject.toml of
the working directory, else the default below.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="FLOWLEDGER_",
        pyproject_toml_table_header=("tool", "flowledger"),
        extra="ignore",
        frozen=True,
    )

    database_url: SecretStr | None = Field(
        None, description="Postgres to use, as a libpq URL. None: the embedded Postgres in the data directory."
    )
    listen_url: SecretStr | None = Field(
        None,
        description="A direct URL for notifications if database_url is a pooler in transaction mode. None: the same.",
    )
    data_dir: Path = Field(Path(".flowledger"), description="Where the embedded Postgres and local identity live.")
    url: str | None = Field(
        None, description="A server through which commands ask, like https://flows.example.org. None: the database."
    )
    token: SecretStr | None = Field(None, description="Who asks that server: a personal token, or a JWT.")
    project: str | None = Field(
        None, description="The CrewAI project: a directory, .py or .yaml file, or module. None: the working directory."
    )
    python: Path | None = Field(
        None, description="The project's interpreter. None: its .venv if it has one, else flowledger's own."
    )
    user_id: UUID | None = Field(
        None, description="Who starts executions from this machine. None: a random identity kept in the data directory."
    )
    slots: int = Field(4, ge=1, le=512, description="Executions that one worker runs side by side.")
    timeout_seconds: float = Field(
        3600, gt=0, le=2_147_483, description="Wall-clock seconds an execution may run, unless it says so itself."
    )
    grace_seconds: float = Field(5, ge=0, le=600, description="Seconds between asking a flow to stop and SIGKILL.")
    drain_seconds: float | None = Field(
        None,
        ge=0,
        description="Seconds that runs get to end after SIGTERM before they are stopped. None: as long as they take.",
    )
    lease_seconds: float = Field(30, ge=1, le=3600, description="Seconds a worker owns an execution without renewing.")
    poll_seconds: float = Field(
        5, ge=0.05, le=300, description="Seconds between looks at the queue when no notification arrives."
    )
    import_seconds: float = Field(120, gt=0, description="Seconds that loading the project's modules may take.")
    max_output_bytes: int = Field(
        1_048_576, ge=1024, description="Size of an output that is stored whole; of a larger one a preview is kept."
    )
    max_log_bytes: int = Field(
        1_048_576, ge=1024, description="Bytes of stdout and stderr kept per execution: the head and the tail."
    )
    max_events: int = Field(
        10_000, ge=1, le=1_000_000, description="Timeline events kept per execution; then only the last that matter."
    )
    preview_characters: int = Field(
        500, ge=0, le=20_000, description="Characters kept of each prompt, answer and output in the timeline; 0: none."
    )
    server_host: str = Field("127.0.0.1", description="Address at which the API is served.")
    server_port: int = Field(8700, ge=0, le=65_535, description="Port at which the API is served, 0: any.")
    allowed_hosts: str | None = Field(
        None,
        description="Names that the API answers to, between commas. None: loopback names; any at a public address.",
    )
    jwt_secret: SecretStr | None = Field(
        None, description="HS256 key of the JWTs that the API takes, at least 32 bytes. None: see jwks_url."
    )
    jwks_url: str | None = Field(
        None,
        description="Where the keys of RS256 or ES256 JWTs are published, fetched when needed. None: see jwks_file.",
    )
    jwks_file: Path | None = Field(None, description="A file of the same keys, read again when needed.")
    jwt_algorithm: str | None = Field(
        None,
        pattern="^(HS256|RS256|ES256)$",
        description="The only algorithm of JWTs. None: HS256 with a secret, RS256 with published keys.",
    )
    jwt_issuer: str | None = Field(None, description="The iss that a JWT must have. None: any.")
    jwt_audience: str | None = Field(
        None, description="The aud that a JWT must have. None: it must have none, since it would be for somebody else."
    )
    jwt_role_claim: str = Field("role", description="The claim of a JWT that says authenticated or service_role.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Size of a request that the API reads.")
    rate_limit: str = Field("500/second", description="Requests that one identity may make of one server process.")
    log_format: str = Field("console", pattern="^(console|json)$", description="The worker's own log: console or json.")
    otlp_endpoint: str | None = Field(
        None, description="OTLP receiver over HTTP for a trace of each execution. None: no traces are made."
    )
    otlp_headers: SecretStr | None = Field(
        None, description="Headers that the receiver wants: name=value pairs between commas, values percent-encoded."
    )
    otlp_previews: bool = Field(
        default=False, description="Whether traces carry what prompts, answers, tools and log lines say."
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port at which a worker serves Prometheus metrics, 0: any. None: it does not.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address at which a worker serves metrics.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, PyprojectTomlConfigSettingsSource(settings_cls)
