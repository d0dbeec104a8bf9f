"""Fetches what vendor.toml names, and writes only what is exactly that.

    scripts/vendor.py           fetch and write
    scripts/vendor.py --check   compare what is written, without a network

To take a newer version, change version and integrity in vendor.toml, empty its sha256 and run it: they are printed.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parent.parent / "src/flowledger/api/static/vendor"


def main() -> None:
    if "--check" not in sys.argv:
        for package in packages():
            fetch(package)
    if faults := differences():
        sys.exit("\n".join(faults))


def packages() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((VENDOR / "vendor.toml").read_text())["package"]
    return found


def fetch(package: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        asked = f"{package['name']}@{package['version']}"
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", place, asked], check=True, stdout=sys.stderr)
        archive = next(Path(place).iterdir())
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if package["integrity"] != f"sha512-{digest}":
            sys.exit(f"{asked} is not what vendor.toml says: sha512-{digest}")
        with tarfile.open(archive) as members:
            for name, file in package["files"].items():
                member = members.extractfile(f"package/{file['from']}")
                assert member is not None
                (VENDOR / name).parent.mkdir(exist_ok=True)
                (VENDOR / name).write_bytes(member.read())


def differences() -> list[str]:
    """Files that are missing, changed, or in no list."""
    listed = {name: file["sha256"] for package in packages() for name, file in package["files"].items()}
    there = {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "vendor.toml"
    }
    return [
        f"{name}: {there.get(name, 'missing')}, and vendor.toml says {listed.get(name, 'nothing')}"
        for name in sorted(there.keys() | listed.keys())
        if there.get(name) != listed.get(name)
    ]


if __name__ == "__main__":
    main()
