"""Measure, compare and judge predictions: plain numpy arrays in, figures and one sentence out."""
