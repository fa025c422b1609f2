"""`recsys` and `python -m recsys`: the program is loaded, then it runs."""

import gc
import os


def main() -> None:
    """What `recsys.cli.main` does. What is imported stays, and a collector that looks through it meanwhile takes a quarter of the start."""
    gc.disable()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # copies of the process only save; else gRPC speaks of each on standard error
    from recsys.cli import main as run  # noqa: PLC0415  not before the line above

    gc.enable()
    run()


if __name__ == "__main__":
    main()
