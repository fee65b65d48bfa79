"""`atr bench`: how fast the parts are here; `atr gpu`: what only a GPU can show."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from atr.cli.console import DeviceOption, complain, fail, print_table, say
from atr.system.credentials import without_credentials
from atr.system.interrupt import as_exception


def clone(variable: str, words: str) -> Any:
    """The option of a folder with released code."""
    return typer.Option(envvar=variable, exists=True, file_okay=False, resolve_path=True, help=words)


def bench(
    parts: Annotated[list[str] | None, typer.Argument(help="Parts, such as evaluation search; all if none.")] = None,
    scale: Annotated[
        str,
        typer.Option(help="smoke, demo (a laptop, half an hour) or paper (the papers' sizes, hours without a GPU)."),
    ] = "demo",
    device: DeviceOption = "auto",
    mei2022: Annotated[
        Path | None, clone("ATR_MEI2022", "A clone of XinhaoMei/audio-text_retrieval, to be measured beside.")
    ] = None,
    tymofieiev2025: Annotated[
        Path | None, clone("ATR_TYMOFIEIEV2025", "The same of timoniko/PR-Text-To-Audio-Retrieval.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything measured to this JSON file.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured here before.")] = False,
    list_parts: Annotated[bool, typer.Option("--list", help="List the parts, and stop.")] = False,
) -> None:
    """Measure how fast the parts are on this machine, beside what people use today; nothing else should run meanwhile.

    Each measurement has a process of its own. The released code of two papers is measured beside ours where a clone of
    it is given; the step of fine-tuning then needs torchlibrosa as well.
    """
    from atr.bench import goals
    from atr.bench.harness import PARTS, ReleasedCode, run
    from atr.system import atomic
    from atr.system.devices import resolve_device

    if list_parts:
        for name, what in PARTS.items():
            say(f"{name:12} {what}")
        return
    try:
        where = resolve_device(device)
        clones = ReleasedCode(mei2022, tymofieiev2025)
        os.environ.setdefault("ATR_COMMAND", f"atr {' '.join(sys.argv[1:])}")
        with as_exception():
            result = run(parts or (), scale, where, clones, again, show)
        result["command"] = without_credentials(os.environ["ATR_COMMAND"])
        if out is not None:
            atomic.write_json(out, result)
    except RuntimeError as error:
        raise fail(error) from error
    rows = goals.table(result["rows"], where)
    rows["factor"] = [f"{factor:.3g}" if factor == factor else "" for factor in rows["factor"].astype(float)]
    print_table(rows, "Goals")
    if out is not None:
        say(f"→ {out}")


def gpu(
    smoke: Annotated[bool, typer.Option("--smoke", help="Every part in miniature, on the CPU.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(envvar="OUT", file_okay=False, resolve_path=True, help="Folder; results/gpu if not given."),
    ] = None,
) -> None:
    """Show in nine minutes on one GPU what only a GPU can: tests, fine-tuning, switches, memory, hours of the tables.

    Nothing is fetched. A page and its JSON are written after every row, so a run that is cut short counts as well.
    Exit status 1 if anything failed.
    """
    from atr.bench.gpu import failures, run
    from atr.system import places

    os.environ.setdefault("ATR_COMMAND", f"atr {' '.join(sys.argv[1:])}")
    folder = out or places.results_home() / "gpu"
    with as_exception():
        content = run(folder, smoke, without_credentials(os.environ["ATR_COMMAND"]), say)
    say(f"→ {folder / ('smoke.md' if smoke else 'gpu.md')}, and the same as .json")
    complain(failures(content), "failed")


def show(row: dict[str, Any]) -> None:
    from atr.system.units import seconds

    size = ", ".join(f"{name} {value}" for name, value in row["size"].items())
    if "missing" in row:
        value = f"not measured: {row['missing']}"
    else:
        value = f"{seconds(row['seconds'])}, {row['memory_gib']:.2f} GiB"
    say(f"{row['part']}, {row['how']} ({size}): {value}")
