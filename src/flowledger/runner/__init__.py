"""One execution, one child process.

Two sides meet here. `process.py` and `limits.py` live in the worker. `template.py`, `child.py`, `describe.py`,
`listener.py`, `usage.py`, `prompt.py`, `encode.py` and `namespace.py` live inside the project's own interpreter, which
holds CrewAI and no library of ours: they need the standard library of Python 3.10 and nothing else. `wire.py` and
`interpreter.py` are the bridge.
"""
