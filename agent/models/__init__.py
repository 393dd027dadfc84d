"""Acquire models: catalogue, store, checks."""
