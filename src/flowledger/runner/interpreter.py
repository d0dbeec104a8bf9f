"""How a module of ours is started under the project's interpreter, and which environment it sees.

The project's interpreter knows nothing of flowledger. The package is loaded from its own folder under its own name,
without that folder's parent on `sys.path`, so that none of our libraries can shadow one of the project's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import flowledger

_PACKAGE = Path(flowledger.__file__).parent

_LOAD = """
import importlib, importlib.util, os, sys
package, module = sys.argv[1:3]
del sys.argv[1:3]
sys.path[:] = [entry for entry in sys.path if entry]
spec = importlib.util.spec_from_file_location(
    "flowledger", os.path.join(package, "__init__.py"), submodule_search_locations=[package])
sys.modules["flowledger"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["flowledger"])
importlib.import_module("flowledger.runner." + module).main()
"""

_QUIET_CREWAI = {
    # Telemetry replaces signal handlers at import and waits for an unreachable host at exit.
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    # A BLAS thread pool started at import would make the template unsafe to fork.
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}

_LEAST_TELLING_LENGTH = 12


def command(python: Path, module: str, *arguments: str) -> list[str]:
    """The argv that runs `flowledger.runner.<module>.main()` under `python`; `arguments` arrive as `sys.argv[1:]`."""
    return [str(python), "-c", _LOAD, str(_PACKAGE), module, *arguments]


def environment(inherited: Mapping[str, str], secrets: Collection[str], storage: Path) -> dict[str, str]:
    """What flow code may see: the inherited environment without anything of the ledger's, CrewAI kept quiet.

    `secrets` are values (the ledger's passwords and URLs): a variable that carries one is left out whatever its name.
    `storage` is the directory for CrewAI's own files.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("FLOWLEDGER_") and not any(_carries(value, secret) for secret in secrets)
    }
    return {**kept, **_QUIET_CREWAI, "CREWAI_STORAGE_DIR": str(storage)}


def forbidden(present: Mapping[str, str], secrets: Collection[str], storage: Path) -> list[str]:
    """The variables that flow code may not see. For an environment that has read the project's .env meanwhile."""
    kept = environment(present, secrets, storage)
    return [name for name in present if name not in kept]


def _carries(value: str, secret: str) -> bool:
    """A weak password such as `postgres` is part of many an innocent value, PATH for one; in an URL it stands apart."""
    if len(secret) < _LEAST_TELLING_LENGTH:
        return bool(secret) and (value == secret or f":{secret}@" in value)
    return secret in value
