"""What the tests of the API share: the ledger's connections under its real roles."""

from tests.ledger.conftest import alice, as_user, bob, connect, flow, owner, worker

__all__ = ["alice", "as_user", "bob", "connect", "flow", "owner", "worker"]
