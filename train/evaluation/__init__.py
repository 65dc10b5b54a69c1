"""Scores of trained models: predictions, metrics, calibration, and the rules to compare with."""
