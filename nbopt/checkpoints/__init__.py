"""What a run's next step depends on, in memory and on disk."""
