"""The parts, how long each may take, and the page of what was measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from atr.bench.gpu.parts import Row, cost_rows, cuda_tests, hour_rows, memory_rows, scoring_rows, step_rows, switch_rows
from atr.system import units


@dataclass(frozen=True)
class PageTable:
    """A table of the page: its title, what its columns mean, how many seconds it has, besides what the parts before it
    leave, `rows(content, deadline)`, and its columns: title → cell of a row.
    """

    title: str
    note: str
    seconds: float
    rows: Callable[[dict[str, Any], float], Iterator[Row]]
    columns: dict[str, Callable[[Row], Any]]


def _number(value: float | None, unit: str = "") -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def _percent(row: Row, name: str, unknown: str = "") -> str:
    if "flops" not in row:
        return ""
    return unknown if row[name] is None else f"{100 * row[name]:.3g} %"


TIMES: dict[str, Callable[[Row], Any]] = {
    "a step": lambda row: units.seconds(row["seconds"]),
    "clips/s": lambda row: _number(row["clips_a_second"]),
}
MEMORY: dict[str, Callable[[Row], Any]] = {"GiB at most": lambda row: _number(row["memory_gib"])}

PARTS = {
    "tests": PageTable(
        "Tests that need a GPU",
        "Of tests/test_cuda.py and tests/test_precision.py, by pytest.",
        125,
        cuda_tests,
        {"test": lambda row: row["test"], "outcome": lambda row: row["outcome"], "why": lambda row: row["reason"]},
    ),
    "steps": PageTable(
        "A step of fine-tuning",
        "Forward, backward and Adam over one batch that lies on the device, in bf16, all switches on but compiling. "
        "FLOPs are counted by PyTorch, of products, convolutions and attention. Their rate is held against the dense "
        "bf16 peak of the card's data sheet, and against one large bf16 product that was timed beside the step.",
        55,
        step_rows,
        {
            "networks": lambda row: row["how"],
            "batch": lambda row: row["size"]["batch"],
            **TIMES,
            "GFLOP a step": lambda row: _number(row["flops"] / 1e9),
            "TFLOP/s": lambda row: _number(row["flops_a_second"] / 1e12),
            "of the card's peak": lambda row: _percent(row, "of_peak", "peak not known"),
            "of a large product": lambda row: _percent(row, "of_product"),
            **MEMORY,
        },
    ),
    "switches": PageTable(
        "What each switch brings",
        "The same step with one thing off, its time over that of the first row: above 1, the switch helps. TF32 has "
        "work left to do only where bf16 is off. The first step includes choosing kernels and compiling.",
        150,
        switch_rows,
        {
            "switches": lambda row: row["how"],
            **TIMES,
            "time against the first row": lambda row: (
                f"{row['against_all_on']:.2f} ×" if "against_all_on" in row else ""
            ),
            "first step": lambda row: units.seconds(row["first_seconds"]),
        },
    ),
    "memory": PageTable(
        "Memory of a large batch",
        "ResNet38 and BERT-base, as in the step above: tensors on the device at most, weights and Adam's state among "
        "them. In chunks each pair is embedded twice (`RunConfig(chunk=…)`).",
        40,
        memory_rows,
        {"batch": lambda row: row["size"]["batch"], "embedded": lambda row: row["how"], **MEMORY, **TIMES},
    ),
    "text_aware": PageTable(
        "Text-aware scoring",
        "Every caption pools the frames of every clip, at the sizes of Clotho's test split with ATST's frames.",
        30,
        scoring_rows,
        {
            "clips": lambda row: row["size"]["clips"],
            "captions": lambda row: row["size"]["captions"],
            "products in": lambda row: row["how"],
            "all pairs": lambda row: units.seconds(row["seconds"]),
            "pairs/s": lambda row: _number(row["pairs_a_second"]),
            **MEMORY,
        },
    ),
    "costs": PageTable(
        "A step of each kind of run in the published grids",
        "32 pairs of 10 s, with the device's switches and the precision of the paper; what the hours below rest on.",
        95,
        cost_rows,
        {"run": lambda row: row["how"], "a step": lambda row: units.seconds(row["seconds"])},
    ),
    "hours": PageTable(
        "Hours of the published tables",
        "An estimate: of each run of the grid in profile `paper`, its steps (epochs × pairs / batch) times a step of "
        "its kind, grown to the length of its corpus's clips, and the embedding of its validation and test splits; one "
        "run after another on this device. Runs that several notebooks share count in each. Not in it: reading sound "
        "from disk, decoding, features of frozen encoders (once), mining, scoring all pairs by text-aware pooling.",
        15,
        hour_rows,
        {
            "notebook": lambda row: row["how"],
            "reproduces": lambda row: row["reproduces"],
            "runs": lambda row: row["runs"],
            "steps": lambda row: f"{row['steps']:,}",
            "hours": lambda row: _number(row["hours"]),
        },
    ),
}


def _why(row: Row) -> str:
    """Why a row has no result, "" if it has one."""
    reason = row.get("error") or row.get("missing")
    return f"not measured: {reason.splitlines()[0][:300]}" if reason else ""


def _cells(part: PageTable, row: Row) -> list[str]:
    """A row's cells; where it has no result, its first ones and in the last why."""
    cells = []
    for cell in part.columns.values():
        try:
            cells.append(str(cell(row)))
        except KeyError:
            cells.append("")
    return [*cells[:-1], _why(row) or cells[-1]]


def line(part: PageTable, row: Row) -> str:
    """A row on one line, as it is said while the rest is measured."""
    first, *cells = _cells(part, row)
    named = [f"{title} {cell}" for title, cell in zip(list(part.columns)[1:], cells, strict=True) if cell]
    return ", ".join([first, *([_why(row)] if _why(row) else named)])


def markdown(content: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    versions = content["machine"]["versions"]
    where = [content["device"], f"driver {content['driver']}" if content["driver"] else "", f"CUDA {content['cuda']}"]
    where += [f"PyTorch {versions['torch']}", f"transformers {versions['transformers']}"]
    where += [f"Python {content['machine']['python']}", f"commit {content['machine']['commit'] or 'not known'}"]
    peak = content["bf16_peak"]
    lines = ["# On the CPU, in miniature: no measurement" if content["smoke"] else "# What a GPU shows", ""]
    lines += [f"{', '.join(filter(None, where))}.", ""]
    lines += [f"`{content['command']}`, {content['began']}, {content['seconds']:.0f} s so far or in all.", ""]
    words = f"{peak / 1e12:,.1f} TFLOP/s, by its data sheet" if peak else "not known"
    lines += [f"Dense bf16 peak of the device: {words}.", ""]
    for name, record in content["parts"].items():
        part = PARTS[name]
        lines += [f"## {part.title}", "", part.note, ""]
        if record["rows"]:
            rows = [list(part.columns), ["---"] * len(part.columns)]
            rows += [[cell.replace("|", "\\|") for cell in _cells(part, row)] for row in record["rows"]]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        if "error" in record:
            lines += [f"Not measured to its end: {record['error'].splitlines()[0][:300]}", ""]
    if missing := [part.title for name, part in PARTS.items() if name not in content["parts"]]:
        lines += [f"Not reached: {'; '.join(missing)}.", ""]
    return "\n".join(lines)
