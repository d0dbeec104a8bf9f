"""One execution, one child process.

Two sides meet here. `process.py`, `account.py` and `limits.py` live in the worker. `template.py`, `child.py`,
`describe.py`, `listener.py`, `gate.py`, `usage.py`, `prompt.py`, `changes.py`, `encode.py`, `redact.py` and
`namespace.py` live inside the project's own interpreter, which holds CrewAI and no library of ours: they need the
standard library of Python 3.10 and nothing else. `wire.py`, `interpreter.py` and `description.py` are the bridge.
"""
