"""`recsys` and `python -m recsys`: the program is loaded, then it runs."""

import gc


def main() -> None:
    """What `recsys.cli.main` does. What is imported stays, and a collector that looks through it meanwhile takes a quarter of the start."""
    gc.disable()
    from recsys.cli import main as run  # noqa: PLC0415  not before the line above

    gc.enable()
    run()


if __name__ == "__main__":
    main()
