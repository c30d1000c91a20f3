"""Writing trained models for other runtimes, and comparing each export with its network."""
