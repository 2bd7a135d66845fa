"""From a raw click log to batches."""
