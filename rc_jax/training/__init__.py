"""The train step, its objective and optimizer, the initial state, prefetching and the run's log."""
