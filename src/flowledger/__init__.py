"""flowledger: the control plane and execution ledger for CrewAI Flows, on your own Postgres.

The package itself stays empty, so that the parts that run inside a flow's own process can be loaded from any
interpreter without dragging in a library.
"""

__version__ = "0.1.0"
