"""`atr`, and `python -m atr`."""

from atr.system.interrupt import stop_at_once


def main() -> None:
    stop_at_once()
    from atr.cli.app import app  # takes its time

    app()


if __name__ == "__main__":
    main()
