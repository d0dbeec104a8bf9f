"""Flows for the runner's tests: a project like any other."""
