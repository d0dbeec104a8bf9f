"""What keeps going: claims executions, runs them, keeps their leases, records them, and reaps what others lost."""
