"""`python -m flowledger` is the `flowledger` command."""

from flowledger.cli import main

if __name__ == "__main__":
    main()
