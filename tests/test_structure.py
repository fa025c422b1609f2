"""The shape of the code, read from its source: who imports whom, through which doors, and what is not there."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["streaming", "models", "recsys"]
GENERATED = ("_pb2.py", "_pb2_grpc.py")
MAX_LINES = 400

ROWS = """
__main__
cli
bench.commands log_commands simulate.commands verify.commands
simulate.whole simulate.page
simulate.battery simulate.findings simulate.credit bench.learners
simulate.run
simulate.understanding
simulate.variants
simulate.bandit simulate.cascade
simulate.baselines
simulate.stage
simulate.worlds simulate simulate.measures
simulate.diary
bench bench.checkpoint bench.loop bench.serve bench.generate bench.unseen bench.train bench.update bench.stream bench.prequential outcome
bench.rank bench.stream_source bench.stream_engines verify verify.crash
bench.pair bench.ranking bench.transformers_slates bench.rectools_training bench.rectools_script bench.machine bench.rates verify.lives
verify.faults verify.journal verify.stream
loop processes replay report dashboard presets
config
server learner keeper snapshots tally rollback
learner_config
trainer version_store quarantine_gate
hot_swap
learner_stats controls publisher engine gates checkpoint live_model reservoir
policy
features journal guard
memory
worlds datasets sequences
audience
truth tables semantic_ids
imports options
click_model
patience
admission spool
batches abtest ope experiment catalogue ledger tokens durable saver client
blobs doubt footing offspring
recommender_pb2_grpc
"""
"""Layers of recsys, top to bottom: a module imports from rows below its own only. Each module has its place."""

DOORS = {
    "kafka": ["streaming/kafka_log.py", "recsys/bench/stream_engines.py"],
    "grpc": ["recsys/server.py", "recsys/patience.py", "recsys/client.py", "recsys/recommender_pb2_grpc.py"],
    "grpc_health": ["recsys/server.py"],
    "grpc_reflection": ["recsys/server.py"],
    "mlflow": ["recsys/publisher.py"],
    "torchrec": ["models/embeddings.py"],
    "numba": ["streaming/compiled.py", "models/kernels.py"],  # neither package knows the other
    "faiss": ["models/tokenizer.py", "recsys/bench/generate.py", "recsys/simulate/cascade.py"],
    "quixstreams": ["recsys/bench/stream_engines.py"],
    "bytewax": ["recsys/bench/stream_engines.py"],
    "transformers": ["recsys/bench/transformers_slates.py"],
    "rectools": ["recsys/bench/rectools_script.py"],
    "pytorch_lightning": ["recsys/bench/rectools_script.py"],
    "pandas": ["recsys/bench/rectools_script.py"],
}
"""The only files that may import these."""
LATE = ("mlflow", "torchrec")
"""Take seconds to import."""

UNNAMED = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_FILES = FILES + sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    """`recsys/memory.py` is `recsys.memory`; a package is its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def nodes(path: Path) -> Iterator[ast.AST]:
    yield from ast.walk(tree_of(path))


MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    return imports_of(nodes(path))


def imports_of(found_in: Iterator[ast.AST]) -> set[str]:
    """Full names of what these import; `from a import b` is `a.b` where that is a module of ours, else `a`."""
    found: set[str] = set()
    for node in found_in:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def importers(top: str, files: list[Path]) -> list[str]:
    return [shown(path) for path in files if top in tops(path)]


def files_of(package: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(ROOT / package)]


# Packages -------------------------------------------------------------------------------------------------------------


def test_there_is_something_to_read() -> None:
    assert all(len(files_of(package)) > 8 for package in PACKAGES)
    assert "streaming.events" in imported(ROOT / "recsys" / "memory.py")
    assert "models.artifact" in imported(ROOT / "recsys" / "publisher.py")
    assert "mlflow" in tops(ROOT / "recsys" / "publisher.py")


@pytest.mark.parametrize(
    ("package", "never"),
    [("streaming", {"models", "recsys", "torch", "torchrec", "faiss"}), ("models", {"streaming", "recsys", "kafka", "grpc"})],
)
def test_a_package_does_not_know_those_above_or_beside_it(package: str, never: set[str]) -> None:
    known = {shown(path): tops(path) & (never | {"tests"}) for path in files_of(package)}
    assert {path: names for path, names in known.items() if names} == {}


def test_nothing_imports_the_tests_and_only_they_import_recsys_from_outside() -> None:
    assert importers("tests", FILES) == []
    assert importers("recsys", sorted((ROOT / "deploy").rglob("*.py"))) == []


def test_no_import_leads_back_to_where_it_began() -> None:
    """Depth first over all modules; a path that meets itself is named."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' → '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(imported(MODULES[name]) & MODULES.keys()):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(MODULES):
        visit(name, ())


def test_imports_are_absolute_and_by_name() -> None:
    relative = [shown(path) for path in ALL_FILES for node in nodes(path) if isinstance(node, ast.ImportFrom) and node.level]
    starred = [shown(p) for p in ALL_FILES for n in nodes(p) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert (relative, starred) == ([], [])


# Layers of recsys -----------------------------------------------------------------------------------------------------


def row_of() -> dict[str, int]:
    return {name: row for row, line in enumerate(ROWS.split("\n")) for name in line.split()}


def test_every_module_of_recsys_has_one_place() -> None:
    modules = {name.removeprefix("recsys.") for name in MODULES if name.startswith("recsys.")}
    assert modules - row_of().keys() == set(), "give each of these a place in ROWS"
    assert len(ROWS.split()) == len(row_of())


def test_imports_inside_recsys_go_down() -> None:
    rows, wrong = row_of(), []
    for path in files_of("recsys"):
        for other in imported(path) & MODULES.keys():
            ours, theirs = (name.removeprefix("recsys.") for name in (name_of(path), other))
            if other.startswith("recsys.") and rows.get(ours, -1) >= rows.get(theirs, len(rows)):
                wrong.append(f"{ours} → {theirs}")
    assert wrong == []


# Doors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    assert set(importers(library, FILES)) <= set(DOORS[library])


@pytest.mark.parametrize("library", LATE)
def test_a_command_that_does_without_does_not_wait_for_it(library: str) -> None:
    door = ROOT / DOORS[library][0]
    assert library in {name.partition(".")[0] for name in imports_of(nodes(door))}
    assert library not in {name.partition(".")[0] for name in imports_of(at_once(tree_of(door)))}


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: all but the insides of functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from at_once(child)


def test_nothing_is_pickled() -> None:
    assert [shown(path) for path in ALL_FILES if tops(path) & PICKLES] == []
    calls = [
        f"{shown(path)}:{node.lineno}"
        for path in ALL_FILES
        for node in nodes(path)
        if isinstance(node, ast.Call) and (ast.unparse(node.func) in {"torch.load", "torch.save"} or any(pickles(k) for k in node.keywords))
    ]
    assert calls == []


def pickles(keyword: ast.keyword) -> bool:
    """`allow_pickle=` with anything but False."""
    return keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_are_named_for_what_they_hold() -> None:
    named = [path for package in [*PACKAGES, "tests"] for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts]
    assert [shown(path) for path in named if UNNAMED & set(path.stem.split("_"))] == []


def test_no_file_is_longer_than_it_can_be_read() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in FILES if not path.name.endswith(GENERATED)}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}
