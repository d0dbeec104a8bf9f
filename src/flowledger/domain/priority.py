"""How soon an execution starts, compared with the others that wait."""

HIGHEST_PRIORITY = 100
"""From this to its negative; higher starts sooner, and 0 is everybody's."""
