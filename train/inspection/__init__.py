"""What can be said of data before a model is trained on them."""
