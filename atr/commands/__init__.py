"""Commands of `atr`, each in a module of its own, and how all of them speak."""

import unicodedata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atr.language_models import without_credentials

KEPT = "\n\t\u200c\u200d"
SHORT, LONG = 16, 30  # characters of a column's longest cell


def harmless(text: str) -> str:
    """Text that a terminal only prints: control characters, direction marks and lone surrogates spelt out, credentials
    left out. Line ends and tabs stay, and so do the joiners that scripts and emoji need.
    """
    return "".join(
        letter
        if letter in KEPT or letter.isprintable() or unicodedata.category(letter) == "Zs"
        else ascii(letter)[1:-1]
        for letter in without_credentials(text)
    )


class SafeConsole(Console):
    """Prints every text `harmless`, cells of tables too."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


console = SafeConsole(emoji=False)

ProfileOption = Annotated[str, typer.Option(help="smoke, demo, esc10 or paper: which data and encoders.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]


def fail(error: BaseException) -> typer.Exit:
    """Say an expected error in plain words."""
    SafeConsole(stderr=True, emoji=False).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    return typer.Exit(1)


def printed(table, title: str = "") -> None:
    """Print a table. Beside a column with a LONG cell, which is broken as the window demands, SHORT ones stay whole."""
    cells = table.map(lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
    widths = [max(len(str(name)), *cells[name].map(len)) for name in cells]
    view = Table(title=escape(title) or None, title_justify="left")
    for name, width in zip(cells, widths, strict=True):
        view.add_column(escape(str(name)), overflow="fold", no_wrap=width <= SHORT and max(widths) > LONG)
    for row in cells.itertuples(index=False):
        view.add_row(*map(escape, row))
    console.print(view)
