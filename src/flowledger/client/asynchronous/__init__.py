"""The client as it is written, for asyncio. `scripts/synchronous.py` makes `client/synchronous` of it."""
