"""How fast RecTools trains its SASRec, measured in an interpreter of its own.

RecTools 0.19 wants numpy below 2 and pandas below 3 on Python 3.11, this project has newer ones: no resolver can put both into
one environment. So it gets a second one, and this module hands it sequences and takes the figures (rectools_script.py).
Knows nothing of RecTools itself.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

SCRIPT = Path(__file__).with_name("rectools_script.py")
INSTALL = "python3 -m venv .venv-rectools && .venv-rectools/bin/pip install 'rectools[torch]==0.19.0' 'torch==2.13.0'"


@dataclass(frozen=True, kw_only=True)
class RecToolsJob:
    """What is trained and for how long; the names RecTools gives them are in the script."""

    width: int
    layers: int
    heads: int
    length: int
    batch: int
    loss: str = "softmax"
    epochs: int = 1
    max_steps: int = -1
    """An earlier end; -1 for none."""
    seed: int = 0
    threads: int = 1


class RecToolsFigures(TypedDict):
    """None where no step came after the warm-up."""

    sequences_per_s: float | None
    p50_step_ms: float | None
    steps: int


def rectools_training(python: Path | str, sequences: Sequence[Sequence[int]], job: RecToolsJob) -> RecToolsFigures:
    """Train in `python`, the interpreter of an environment with RecTools. RuntimeError says what it lacks.

    Only training steps are timed: forward, backward, optimizer. Making tables and batches is not.
    """
    work = json.dumps(asdict(job) | {"sequences": [list(items) for items in sequences]})
    try:
        # -I: nothing of ours is on its path
        done = subprocess.run([python, "-I", SCRIPT], input=work, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"there is no {python}; make one: {INSTALL}") from None
    if done.returncode:
        raise RuntimeError(f"{python} could not train ({done.stderr.strip().splitlines()[-1:]}); a fresh environment: {INSTALL}")
    figures: RecToolsFigures = json.loads(done.stdout.splitlines()[-1])
    return figures
