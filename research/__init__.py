"""Isoflop: neural scaling experiments in JAX."""

__version__ = "0.1.0"
