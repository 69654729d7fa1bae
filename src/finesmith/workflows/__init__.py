"""Workflows: the only wiring. Each is a story that reads top to bottom."""
