"""Functions and classes taken from released code as it stands, without the imports around them.

The files import trackers, loaders and downloads that a measurement has no use for, and that need not be installed.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def definitions(file: Path, names: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """The functions, classes and methods ("Class.method") of a file by their names, run with the names of `known`.

    ValueError: the file is not there or does not define one of them.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); give a clone of the released code") from error
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{own.name}": own for own in node.body if isinstance(own, ast.FunctionDef)}
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{file}: does not define {', '.join(missing)}; give a clone of the released code")
    space = dict(known)
    for name in names:
        exec(compile(ast.Module([found[name]], []), str(file), "exec"), space)
    return {name: space[name.rpartition(".")[2]] for name in names}
