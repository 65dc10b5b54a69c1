"""Batches: negatives, windows of histories, distinct rows."""
