"""Export of trained models, and artifacts that serve."""
