"""Re-ranking: an evaluator that judges slates, a generator that writes them."""
