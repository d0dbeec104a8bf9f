"""Flows that meet a budget."""
