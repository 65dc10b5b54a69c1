"""How parameters come to be: data, tables, steps, metrics, checkpoints."""
