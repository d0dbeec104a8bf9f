"""The ledger's tests once more, each statement of the worker and the API through a pooler in transaction mode."""

import psycopg

from tests.ledger.test_executions import *  # noqa: F403
from tests.ledger.test_law_births import *  # noqa: F403
from tests.ledger.test_law_claims import *  # noqa: F403
from tests.ledger.test_law_edges import *  # noqa: F403
from tests.ledger.test_law_limits import *  # noqa: F403
from tests.ledger.test_timeline import *  # noqa: F403

# These listen, which goes past a pooler.
del (
    test_a_worker_is_notified_only_when_it_waits,  # noqa: F821
    test_a_running_execution_is_wished_cancelled_and_its_holder_learns_it,  # noqa: F821
    test_a_freed_place_wakes_a_worker_that_waits,  # noqa: F821
    test_resuming_wakes_workers,  # noqa: F821
)


def test_the_pooler_is_in_between_and_shares_its_connections(pooled):
    with (
        psycopg.connect(pooled.url("flowledger_worker"), autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(pooled.url("flowledger_worker"), autocommit=True, prepare_threshold=None) as other,
    ):
        asked = "select pg_backend_pid() as pid"
        assert one.execute(asked).fetchone() == other.execute(asked).fetchone()
