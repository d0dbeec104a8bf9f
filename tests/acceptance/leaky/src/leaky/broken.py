"""Cannot be imported, and says more than it should."""
# ruff: noqa: T201 - flows print, as users do

import os

from crewai.flow import Flow

SECRETS = [os.environ[name] for name in os.environ if name.startswith("CANARY_")]
print(SECRETS)

raise LookupError(f"this module is broken: {' '.join(SECRETS)} {'not-in-the-' + 'environment'}")


class Broken(Flow):
    pass
