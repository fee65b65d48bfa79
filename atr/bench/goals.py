"""What was measured, held against what the project sets out to reach."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from atr.bench import needs
from atr.system.units import seconds

PEOPLE = "released code"


def table(rows: Sequence[dict[str, Any]], device: str) -> pd.DataFrame:
    """One row per goal: work, goal, ours and theirs in words, factor, and whether it is met: "yes", "no", or "not
    measured" with the reason. rows: as `atr.bench.harness.run` gives them.
    """
    lines = []
    for shape, least in (("Clotho", 100), ("AudioCaps", 25)):
        work = f"frozen study, {shape}'s shape, against encoding anew in every epoch"
        few = [row["size"]["clips"] for row in rows if row["part"] == "frozen" and row["size"]["shape"] == shape]
        one = {"shape": shape, "clips": max(few, default=0), "network": "paper"}
        lines.append(_against(rows, work, least, "frozen", "anew in every epoch", one))
    size = {"clips": 1045, "dim": 1024}
    work = "evaluation, 1,045 × 5,225, D 1024, against the released loop"
    lines.append(_against(rows, work, 80, "evaluation", PEOPLE, size))
    large, ours, met = _find(rows, "evaluation", "atr", {"clips": 10_000}), "", None
    if large is not None and "missing" not in large:
        ours = f"{large['seconds']:.1f} s, {large['memory_gib']:.2f} GiB"
        met = large["seconds"] <= 60 and large["memory_gib"] <= 2
    lines.append(_line("evaluation, 10,000 × 50,000", "within 60 s and 2 GiB", large, ours, met=met))
    work = "text-aware scoring, against the released loop"
    lines.append(_against(rows, work, 20, "text_aware", PEOPLE, {"dim": 1024}))
    lines += _steps(rows, device)
    return pd.DataFrame(lines)


def hours(device: str) -> pd.DataFrame:
    """Hours of each published grid on a GPU, one run after another: notebook, runs, hours. Empty on a CPU."""
    lines = []
    for path, plan in (needs.plans("paper") if device == "cuda" else {}).items():
        groups, _ = needs.summary(plan, device, 1)
        lines.append({"notebook": path.stem, "runs": len(plan), "hours": groups.attrs["seconds"] / 3600})
    return pd.DataFrame(lines, columns=["notebook", "runs", "hours"])


def agreement(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """For each way that does the same work as ours: the largest difference between the numbers that both give."""
    lines = []
    for other in rows:
        numbers = _numbers(other)
        sizes = {name: value for name, value in other["size"].items() if name != "timed_epochs"}
        ours = _find(rows, other["part"], "atr", sizes)
        if other["how"] != "atr" and numbers and ours is not None and len(_numbers(ours)) == len(numbers):
            apart = max(abs(a - b) for a, b in zip(numbers, _numbers(ours), strict=True))
            words = ", ".join(f"{name} {value}" for name, value in sizes.items() if name != "device")
            lines.append({"part": other["part"], "how": other["how"], "size": words, "difference": apart})
    return pd.DataFrame(lines, columns=["part", "how", "size", "difference"])


def _numbers(row: dict[str, Any]) -> list[float]:
    scores = row.get("scores", [])
    numbers = list(scores.values()) if isinstance(scores, dict) else list(scores)
    return [*numbers, row["first_loss"]] if "first_loss" in row else numbers


def _steps(rows: Sequence[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """Fine-tuning: its goals are a GPU's; on a CPU they are not measured, and the ratio at equal precision is."""
    gpu = device == "cuda"
    work = "fine-tuning step, ResNet38 and BERT, against the released code"
    wanted: dict[str, Any] = {"part": "step", "missing": "needs a GPU: atr bench step --device cuda"}
    best = _against(rows, f"{work}: at its best", 3, "step", PEOPLE, {}, how="atr, all")
    equal = _against(rows, f"{work}: in float32, no TF32", None, "step", PEOPLE, {}, how="atr, plain")
    supply = max((_rate(row) for row in rows if row["part"] == "pipeline"), default=0.0)
    steps = [_rate(row) for row in rows if row["part"] == "step" and "seconds" in row and row["how"].startswith("atr")]
    pipeline = "input pipeline", "3 times what the step consumes"
    lines = [_line(*pipeline, None)]
    if supply and steps:
        words, factor = (f"{supply:,.0f} clips/s served", f"{max(steps):,.1f} clips/s consumed"), supply / max(steps)
        lines = [_line(*pipeline, {}, *words, factor, factor >= 3)]
    large, ours, met = _find(rows, "step", "atr, large batch", {}) or wanted, "", None
    if "missing" not in large:
        ours, met = f"{large['memory_gib']:.1f} GiB", large["memory_gib"] <= 24
    lines.append(_line("fine-tuning, B 128", "within 24 GiB of GPU memory", large, ours, met=met))
    return [best if gpu else _line(best["work"], best["goal"], wanted), equal, *lines]


def _against(
    rows: Sequence[dict[str, Any]],
    work: str,
    least: float | None,
    part: str,
    theirs: str,
    size: dict[str, Any],
    how: str = "atr",
) -> dict[str, Any]:
    """Ours beside theirs, at the largest size that both have been measured at."""
    goal = f"{least:g} times faster" if least else ""
    for other in reversed([row for row in rows if (row["part"], row["how"]) == (part, theirs)]):
        if any(other["size"].get(name) != value for name, value in size.items()):
            continue
        if "missing" in other:
            return _line(work, goal, other)
        sizes = {name: value for name, value in other["size"].items() if name != "timed_epochs"}
        ours = _find(rows, part, how, sizes)
        if ours is None or "missing" in ours:
            return _line(work, goal, ours)
        factor = other["seconds"] / ours["seconds"]
        met = None if least is None else factor >= least
        return _line(work, goal, ours, seconds(ours["seconds"]), seconds(other["seconds"]), factor, met)
    return _line(work, goal, None)


def _find(rows: Sequence[dict[str, Any]], part: str, how: str, size: dict[str, Any]) -> dict[str, Any] | None:
    for row in rows:
        equal = (row["size"].get(name, value) == value for name, value in size.items())
        if (row["part"], row["how"]) == (part, how) and all(equal):
            return row
    return None


def _line(
    work: str,
    goal: str,
    row: dict[str, Any] | None,
    ours: str = "",
    theirs: str = "",
    factor: float | None = None,
    met: bool | None = None,
) -> dict[str, Any]:
    if row is None or "missing" in row:
        word = "not measured: " + ("not at this scale" if row is None else row["missing"])
    else:
        word = {True: "yes", False: "no", None: ""}[met]
    return {"work": work, "goal": goal, "atr": ours, "other": theirs, "factor": factor, "reached": word}


def _rate(row: dict[str, Any]) -> float:
    """Clips a second, 0 where not measured."""
    return row.get("served", row.get("clips", 0)) / row["seconds"] if "seconds" in row else 0.0
