"""Flows whose timeline is looked at."""
