"""Commands of `atr`, each in a module of its own, and how all of them speak."""

import codecs
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Timer
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from atr.config import WINDOWS
from atr.experiments.profiles import PROFILES, get_profile
from atr.register import LOADERS
from atr.system.credentials import without_credentials
from atr.system.devices import check_name
from atr.system.interrupt import INTERRUPT_STATUS, STOP_NOTE

ASCII_SIGNS = {"±": "+-", "→": ">", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "’": "'", "“": '"', "”": '"'}
HARMLESS = "\t\u200c\u200d"
SHORT, LONG = 16, 30  # characters of a column's longest cell
PATIENCE = 1.0  # seconds without a word, after which one says what goes on


def harmless(text: str) -> str:
    """Text that a terminal only prints, on one line: line ends, control characters, direction marks and lone surrogates
    spelt out, credentials left out. Tabs stay, and so do the joiners that scripts and emoji need.
    """
    return "".join(
        letter
        if letter in HARMLESS or letter.isprintable() or unicodedata.category(letter) == "Zs"
        else ascii(letter)[1:-1]
        for letter in without_credentials(text)
    )


class SafeConsole(Console):
    """Prints every text `harmless`, cells of tables too, and markup only where it is asked to.

    Several lines are several texts, with sep="\n": a name with a line end in it makes none.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, markup=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


console = SafeConsole()

_remark: Timer | None = None


def doing(words: str = "") -> None:
    """What a command is at, to be said if it says nothing else for PATIENCE seconds; nothing: it is at an end."""
    global _remark
    if _remark is not None:
        _remark.cancel()
    _remark = Timer(PATIENCE, SafeConsole(stderr=True).print, [f"{words} …"], {"soft_wrap": True}) if words else None
    if _remark is not None:
        _remark.daemon = True
        _remark.start()


def option_check(check: Callable[[str], Any]) -> Any:
    """For an option: its value, unless `check` raises a ValueError, which then names the option as it is given."""

    def take(parameter: typer.CallbackParam, value: str) -> str:
        try:
            check(value)
        except ValueError as error:
            words = f"--{error}"
            raise ValueError(words if words.startswith(f"{parameter.opts[0]}: ") else str(error)) from error
        return value

    return take


def choice(values: Sequence[str]) -> Any:
    """For an option: its value, None or one of these; ValueError names it and them."""

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in values:
            raise ValueError(f"{parameter.opts[0]}: unknown {value!r}; known: {', '.join(values)}")
        return value

    return check


def _folder(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().is_dir():
        raise ValueError(f"--root: {path}: no such folder; name that of the corpus")
    return path and path.expanduser()


def beginning(names: Sequence[str]) -> Any:
    """For the shell's completion: those of the names that begin as what is typed."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _names_in(pattern: str, files: str) -> tuple[str, ...]:
    """Names that files of this package register, by their text: importing them takes seconds."""
    paths = sorted(Path(__file__).parents[1].glob(files))
    return tuple(name for path in paths for name in re.findall(pattern, path.read_text(encoding="utf-8"), re.M))


CORPORA = _names_in(r'^@register\.corpus\("(\w+)"\)', "corpora/**/*.py")
ROOT_CORPORA = _names_in(r'^@register\.corpus\("(\w+)"\)\ndef \w+\(\s*root: [^=,]*,', "corpora/**/*.py")  # need --root
DATA = _names_in(r'^    "(\w+)": DataSet\(', "corpora/catalogue.py")  # and below them checkpoints
DATA += _names_in(r'^checkpoints\.(?:zenodo|github)\(\s*"[^"]+", "(\w+)"', "encoders/audio/*.py")
CorpusArgument = Annotated[str, typer.Argument(help=f"{', '.join(CORPORA)}.", autocompletion=beginning(CORPORA))]
ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        help=f"Data and encoders: {', '.join(PROFILES)}.",
        callback=option_check(get_profile),
        autocompletion=beginning([*PROFILES]),
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, or auto: a GPU if there is one.",
        callback=option_check(check_name),
        autocompletion=beginning(["auto", "cpu", "cuda"]),
    ),
]
WindowsOption = Annotated[
    str | None,
    typer.Option(
        help="Of longer sounds: the mean of all windows, the first, or a random one.", callback=choice(WINDOWS)
    ),
]
RootOption = Annotated[
    Path | None, typer.Option(help=f"Folder of the corpus, for {' and '.join(ROOT_CORPORA)}.", callback=_folder)
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def check_corpus(corpus: str, root: Path | None) -> None:
    """ValueError: no such corpus, or one that does not go with this root."""
    if corpus not in (*CORPORA, *LOADERS):
        names = ", ".join(dict.fromkeys((*CORPORA, *LOADERS)))
        raise ValueError(f"unknown corpus {corpus!r}; known: {names}; one of your own: set ATR_EXTENSIONS to its file")
    if corpus in ROOT_CORPORA and root is None:
        raise ValueError(f"corpus {corpus!r} lies in a folder: name it with --root")
    if corpus == "soundscapes" and root is not None:
        raise ValueError(f"--root: {root}: soundscapes are computed, not read; leave it out")


def check_out(folder: Path | None) -> None:
    """ValueError: what cannot be a folder that is written to, told before anything is computed."""
    if folder is None:
        return
    there = folder.expanduser().absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"--out: {there}: a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out: {there}: cannot be written to; make it writable, or name another folder")


class Commands(TyperGroup):
    """Commands that print on any terminal: what its encoding lacks is spelled, or else a question mark.

    Warnings are `harmless` too. What cannot be done is said in plain words (`fail`).
    """

    def invoke(self, ctx: Any) -> Any:
        doing("loading PyTorch and what else the command needs")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            say(STOP_NOTE, error=True)
            raise typer.Exit(INTERRUPT_STATUS) from error
        except BrokenPipeError:  # which click takes for the end of what reads from here
            raise
        except (ValueError, OSError) as error:
            raise fail(error) from error
        except RuntimeError as error:
            if not type(error).__module__.startswith("atr."):
                raise
            raise fail(error) from error
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "atr":
                raise
            words = f"{' '.join(str(error).split())}: it is one of the extras of this package"
            mend = "make .venv/.study .venv/.cluster, or pip install '.[study,cluster]' in its folder"
            raise fail(ValueError(f"{words}: {mend}")) from error
        finally:
            doing()

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="spelled")
        before = warnings.formatwarning
        warnings.formatwarning = lambda message, *where, **more: before(harmless(str(message)), *where, **more)
        try:
            return super().main(*args, **options)
        finally:
            warnings.formatwarning = before


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(ASCII_SIGNS.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("spelled", _spell)


def fail(error: BaseException) -> typer.Exit:
    """Say an expected error in plain words."""
    doing()
    several = isinstance(error, RuntimeError) or hasattr(error, "problems")  # of runs and notebooks; of a corpus
    first, *more = map(escape, str(error).split("\n") if several else [str(error)])
    SafeConsole(stderr=True).print(f"[red]error:[/red] {first}", *more, sep="\n", soft_wrap=True, markup=True)
    return typer.Exit(1)


def say(*lines: str, error: bool = False) -> None:
    """Print texts as they are, a line each."""
    doing()
    stream = SafeConsole(stderr=True) if error else console
    stream.print(*lines, sep="\n", soft_wrap=True, highlight=False)


def complain(problems: Sequence[str], what: str, most: int | None = None) -> None:
    """Say problems, at `most` so many, and how many there are, and end with status 1; nothing if there are none."""
    if problems:
        say(*problems[:most])
        console.print(f"[red]{len(problems)} {what}[/red]", markup=True)
        raise typer.Exit(1)


def print_table(table: Any, title: str = "") -> None:
    """Print a data frame, or rows: mappings with the same keys. Beside a column with a LONG cell, which is broken as
    the window demands, SHORT ones stay whole.
    """
    doing()
    rows = table if isinstance(table, list) else table.to_dict("records")
    names = list(rows[0] if rows else table)
    cells = [[f"{row[name]:.1f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(map(str, names), *cells, strict=True)]
    view = Table(title=title or None, title_justify="left")
    for name, width in zip(names, widths, strict=True):
        view.add_column(str(name), overflow="fold", no_wrap=width <= SHORT and max(widths) > LONG)
    for row in cells:
        view.add_row(*row)
    console.print(view)
