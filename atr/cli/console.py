"""Commands of `atr`, each in a module of its own, and how all of them speak."""

import codecs
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from atr.system.credentials import without_credentials

SPELLED = {"±": "+-", "→": ">", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "’": "'", "“": '"', "”": '"'}
KEPT = "\t\u200c\u200d"
SHORT, LONG = 16, 30  # characters of a column's longest cell


def harmless(text: str) -> str:
    """Text that a terminal only prints, on one line: line ends, control characters, direction marks and lone surrogates
    spelt out, credentials left out. Tabs stay, and so do the joiners that scripts and emoji need.
    """
    return "".join(
        letter
        if letter in KEPT or letter.isprintable() or unicodedata.category(letter) == "Zs"
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

CorpusArgument = Annotated[
    str, typer.Argument(help="soundscapes, clipfolder, csv, clotho, audiocaps, wavcaps, people.")
]
ProfileOption = Annotated[str, typer.Option(help="smoke, demo, esc10, esc50, captions or paper: data and encoders.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]
RootOption = Annotated[Path | None, typer.Option(help="Folder of the corpus, for clipfolder and csv.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


class Commands(TyperGroup):
    """Commands that print on any terminal: what its encoding lacks is spelled, or else a question mark.

    Warnings are `harmless` too. What cannot be done is said in plain words (`fail`).
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # which click takes for the end of what reads from here
            raise
        except (ValueError, OSError) as error:
            raise fail(error) from error
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "atr":
                raise
            words = f"{' '.join(str(error).split())}: it is one of the extras of this package"
            mend = "make .venv/.study .venv/.cluster, or pip install '.[study,cluster]' in its folder"
            raise fail(ValueError(f"{words}: {mend}")) from error

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


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("spelled", _spelled)


def fail(error: BaseException) -> typer.Exit:
    """Say an expected error in plain words."""
    several = isinstance(error, RuntimeError) or hasattr(error, "problems")  # of runs and notebooks; of a corpus
    first, *more = map(escape, str(error).split("\n") if several else [str(error)])
    SafeConsole(stderr=True).print(f"[red]error:[/red] {first}", *more, sep="\n", soft_wrap=True, markup=True)
    return typer.Exit(1)


def say(*lines: str, error: bool = False) -> None:
    """Print texts as they are, a line each."""
    stream = SafeConsole(stderr=True) if error else console
    stream.print(*lines, sep="\n", soft_wrap=True, highlight=False)


def complain(problems: Sequence[str], what: str, most: int | None = None) -> None:
    """Say problems, at `most` so many, and how many there are, and end with status 1; nothing if there are none."""
    if problems:
        say(*problems[:most])
        console.print(f"[red]{len(problems)} {what}[/red]", markup=True)
        raise typer.Exit(1)


def printed(table, title: str = "") -> None:
    """Print a table. Beside a column with a LONG cell, which is broken as the window demands, SHORT ones stay whole."""
    cells = table.map(lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
    widths = [max(len(str(name)), *cells[name].map(len)) for name in cells]
    view = Table(title=title or None, title_justify="left")
    for name, width in zip(cells, widths, strict=True):
        view.add_column(str(name), overflow="fold", no_wrap=width <= SHORT and max(widths) > LONG)
    for row in cells.itertuples(index=False):
        view.add_row(*row)
    console.print(view)
