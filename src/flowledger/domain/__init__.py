"""What things are: executions, statuses, flows, events. Pure values; standard library only."""
