"""What is compiled: works where nothing can be kept on disk, and calls nothing that numba would not see change."""

import ast
import builtins
from itertools import product
from pathlib import Path

import models
import streaming
from models import kernels
from models.generate import WAYS
from recsys.bench.generate import Subject
from streaming.compiled import compiled


def test_a_function_without_a_file_is_compiled_and_not_kept():
    named: dict = {}
    exec("def doubled(number):\n    return 2 * number", named)
    assert compiled(named["doubled"])(21) == 42


def test_compiled_functions_call_only_those_of_their_own_file():
    found = 0
    for path in sorted(path for package in (streaming, models) for path in Path(package.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        marked = {name for name, node in functions.items() if any(ast.unparse(mark) == "compiled" for mark in node.decorator_list)}
        for name in marked:
            called = {ast.unparse(node.func) for node in ast.walk(functions[name]) if isinstance(node, ast.Call)}
            foreign = {one for one in called if one.split(".")[0] not in marked | classes | {"np"} | set(dir(builtins))}
            assert not foreign, f"{path.name}: {name} calls {foreign}"
        found += len(marked)
    assert found > 20


def test_the_walk_is_compiled_once_for_all_that_is_drawn():
    """Arrays of another type or order would be compiled for while somebody waits for an answer."""
    kernels.load()
    for levels, way, batch in product((1, 3), WAYS, (1, 5)):
        Subject.of(300, levels=levels, codes=4).drawing(batch, way)()
    assert [len(kernel.signatures) for kernel in (kernels.attend, kernels.drawn)] == [1, 1]
