"""Layers, losses and other parts that several models share."""
