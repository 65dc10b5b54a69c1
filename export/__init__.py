"""How a trained model leaves the building and serves."""
