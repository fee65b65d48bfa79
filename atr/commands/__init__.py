"""Commands of `atr`, each in a module of its own, and how all of them speak."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()

ProfileOption = Annotated[str, typer.Option(help="smoke, demo, esc10 or paper: which data and encoders.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]


def fail(error: BaseException) -> typer.Exit:
    """Say an expected error in plain words."""
    Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    return typer.Exit(1)


def printed(table, title: str = "") -> None:
    view = Table(title=title or None, title_justify="left")
    for column in table.columns:
        view.add_column(str(column), overflow="fold")
    for row in table.itertuples(index=False):
        view.add_row(*(escape(f"{value:.1f}" if isinstance(value, float) else str(value)) for value in row))
    console.print(view)
