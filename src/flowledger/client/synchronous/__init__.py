# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""The client for whoever does not await. It is made of `client/asynchronous`."""
