"""The examples in docstrings run and give what they say; every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import atr

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def modules():
    for found in pkgutil.walk_packages(atr.__path__, "atr."):
        if not found.name.endswith("__main__"):
            yield found.name


def examples():
    """Name and docstring of all that shows an example; modules are read, not imported, until they have one."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in modules():
        file = importlib.util.find_spec(name).origin
        if ">>>" in open(file, encoding="utf-8").read():
            module = importlib.import_module(name)
            yield from (test for test in finder.find(module, globs=vars(module) | {"atr": atr}) if test.examples)


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = doctest.DocTestRunner(optionflags=FLAGS).run(EXAMPLES[name])
    assert result.failed == 0 and result.attempted > 0, capsys.readouterr().out


@pytest.mark.parametrize("name", atr.__all__)
def test_a_public_name_shows_an_example(name):
    thing = getattr(atr, name)
    assert f"{thing.__module__}.{thing.__qualname__}" in EXAMPLES
    assert inspect.getdoc(thing)
