"""`python -m stub_llm [--port N] [--ready-file FILE]`: serves until interrupted, after saying what to export."""

import argparse
import signal
from pathlib import Path

from stub_llm.server import StubServer, environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stub_llm", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8089, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="written with the URL once the server answers")
    arguments = parser.parse_args()
    # Blocked before any thread starts, so that the signal waits for sigwait instead of interrupting a thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with StubServer(arguments.host, arguments.port) as url:
        for name, value in environment(url).items():
            print(f"export {name}={value}", flush=True)
        if arguments.ready_file:
            _write_whole(arguments.ready_file, url)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def _write_whole(path: Path, text: str) -> None:
    """Whoever waits for the file never reads half of it."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    main()
