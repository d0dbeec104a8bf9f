"""Flows that are good, slow, or do what no flow should."""
