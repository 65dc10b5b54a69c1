"""Inspection of data before a model is trained on them."""
