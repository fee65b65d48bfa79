"""The reference of `atr` from its docstrings, by pdoc: python docs/site/api.py <folder>."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import atr

for name in atr.__all__:  # pdoc does not ask for what is loaded on first use
    setattr(atr, name, getattr(atr, name))
modules = [one.name for one in pkgutil.walk_packages(atr.__path__, "atr.") if not one.name.endswith("__main__")]
warnings.filterwarnings("ignore", module="pdoc")  # of modules that it would have found itself, of types of torch's
pdoc.render.configure(show_source=False)
pdoc.pdoc("atr", *modules, output_directory=Path(sys.argv[1]))
