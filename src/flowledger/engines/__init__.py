"""Who carries executions from the ledger to a worker."""
