"""Training: data, tables, steps, metrics, checkpoints."""
