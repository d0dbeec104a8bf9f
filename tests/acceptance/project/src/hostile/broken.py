"""Cannot be imported."""

from crewai.flow import Flow

raise LookupError("this module is broken")


class Broken(Flow):
    pass
