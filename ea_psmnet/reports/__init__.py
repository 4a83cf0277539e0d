"""Evaluation and comparison: each returns data, then renders it."""
