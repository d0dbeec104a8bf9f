"""REST resources over the ledger: read what was asked, ask the ledger as whoever asks, answer.

Every request that touches the ledger runs in one transaction under the caller's role and claims: there is no second
path. A handler is three lines; errors become problems in one place.
"""
