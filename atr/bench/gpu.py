"""What only a GPU can show, in nine minutes on one: `atr gpu`, or `make gpu`.

Weights are drawn at random and sounds made up, so nothing is fetched. Each measurement has a process of its own, as
those of `atr bench`, which ends when the time of its part is up. Everything is written anew after every row, so a run
that is cut short counts as far as it came; what fails says why, and the rest goes on.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from atr.bench import harness, step, text_aware
from atr.bench.harness import Case
from atr.config import RunConfig
from atr.experiments import planning
from atr.system import atomic, places
from atr.system.devices import Switches, resolve_device
from atr.system.units import seconds as duration

LEAST_SECONDS = 3.0  # below which no measurement begins
TESTS = ("tests/test_cuda.py", "tests/test_precision.py")
SMOKE_TESTS = ("tests/test_precision.py::test_bf16_agrees_with_float32_on_a_cpu",)

# Dense products in bf16 with sums in float32, FLOPs a second, by the name that CUDA gives a card. Where a data sheet
# counts with sparsity, the half of it.
BF16_PEAKS = {
    "NVIDIA H200": 989.4e12,  # H200 data sheet: 1,979 with sparsity
    "NVIDIA H100 80GB HBM3": 989.4e12,  # H100 data sheet, SXM: 1,979 with sparsity; architecture paper: 989.4
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet, PCIe: 1,513 with sparsity; architecture paper: 756
    "NVIDIA A100-SXM4-80GB": 312e12,  # A100 data sheet; all of its forms have the same
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362.05e12,  # L40S data sheet: 362.05, and 733 with sparsity
    "NVIDIA L4": 121e12,  # L4 data sheet: 242 with sparsity
    "NVIDIA GeForce RTX 4090": 165.2e12,  # Ada architecture paper, appendix A: 165.2, and 330.4 with sparsity
    "NVIDIA GeForce RTX 3090": 71e12,  # GA102 architecture paper, table 9: 71, and 142 with sparsity
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A table of the page: its title, what its columns mean, how many seconds it has, besides what the parts before it
    leave, `rows(content, deadline)`, and its columns: title → cell of a row.
    """

    title: str
    note: str
    seconds: float
    rows: Callable[[dict[str, Any], float], Iterator[Row]]
    columns: dict[str, Callable[[Row], Any]]


def run(folder: Path, smoke: bool = False, command: str = "", say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Measure all parts, and write `gpu.json` and `gpu.md` into a folder after every row; `smoke`: in miniature, on the
    CPU, into `smoke.json` and `smoke.md`. Gives what was written. ValueError: there is no GPU.
    """
    if not smoke and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; every part in miniature, on the CPU: make gpu SMOKE=1")
    device = resolve_device("cpu" if smoke else "cuda")
    machine = harness.machine(device)
    content: dict[str, Any] = {
        "device": machine["device"],
        "bf16_peak": None if smoke else BF16_PEAKS.get(machine["device"]),
        "driver": "" if smoke else _driver(),
        "cuda": torch.version.cuda,
        "machine": machine,
        "command": command,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "smoke": smoke,
        "seconds": 0.0,
        "parts": {},
    }
    began = time.monotonic()

    def write() -> None:
        content["seconds"] = round(time.monotonic() - began, 1)
        stem = folder / ("smoke" if smoke else "gpu")
        atomic.write_json(stem.with_suffix(".json"), content)
        text = page(content)
        atomic.write_atomic(stem.with_suffix(".md"), lambda file: file.write_text(text, encoding="utf-8"))

    deadline = began
    for name, part in PARTS.items():
        now, deadline = time.monotonic(), deadline + part.seconds
        record: dict[str, Any] = {"title": part.title, "rows": []}
        content["parts"][name] = record
        try:
            for row in part.rows(content, deadline):
                record["rows"].append(row)
                say(f"{name}: {_line(part, row)}")
                write()
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            say(f"{name}: {record['error']}")
        record["seconds"] = round(time.monotonic() - now, 1)
        write()
    return content


def failures(content: dict[str, Any]) -> list[str]:
    """What did not end as it should, a line each: tests, measurements and whole parts."""
    found = []
    for name, record in content["parts"].items():
        found += [f"{name}: {row['test']}: {row['outcome']}" for row in record["rows"] if row.get("failed")]
        found += [f"{name}: {row['how']}: {row['error']}" for row in record["rows"] if "error" in row]
        found += [f"{name}: {record['error']}"] if "error" in record else []
    return found


def _driver() -> str:
    """Version of the card's driver, "" where nvidia-smi does not say."""
    try:
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def measured(cases: list[Case], deadline: float) -> Iterator[Row]:
    """A row of each case: what it comes to, or an error that says why there is nothing."""
    for case in cases:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            yield case.row() | {"error": "no time was left"}
            continue
        try:
            row = harness.measure(case, left, threads=1 if case.arguments.get("device") == "cpu" else None)
        except harness.Failed as error:
            row = case.row() | {"error": error.reason}
        if "seconds" in row and "clips" in row:
            row["clips_a_second"] = row["clips"] / row["seconds"]
        yield row


# Tests that need a GPU


def cuda_tests(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    """A row of each test, in a process of pytest, which ends with all that it started when the time is up."""
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    environment = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    if content["smoke"]:
        environment["OMP_NUM_THREADS"] = "1"
    command += SMOKE_TESTS if content["smoke"] else TESTS
    with tempfile.TemporaryFile("w+") as said:
        options: dict[str, Any] = {"stdout": said, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, cwd=places.PROJECT, env=environment, **options)
        try:
            process.wait(max(deadline - time.monotonic(), LEAST_SECONDS))
        except subprocess.TimeoutExpired:
            pass
        finally:
            late = process.poll() is None
            if late:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        text = said.read()
    rows = outcomes(text)
    if late or process.returncode or not rows:
        content["parts"]["tests"]["output"] = text[-8000:]
    if not rows:
        lines = text.strip().splitlines() or ["nothing was said"]
        raise RuntimeError(f"no test ran: {next((line for line in lines if line.startswith('ERROR')), lines[-1])}")
    yield from rows


def outcomes(text: str) -> list[Row]:
    """Of what `pytest -v` said: each test's name, outcome, and in a word why."""
    reasons = dict(re.findall(r"^(?:FAILED|ERROR) (\S+) - (.*)$", text, re.M))
    rows = []
    for name, rest in re.findall(r"^(\S+\.py::\S+)(.*)$", text, re.M):
        outcome = re.match(r" (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \((.*)\))?", rest)
        word = outcome[1].lower() if outcome else "not finished in time"
        why = (outcome[2] if outcome else "") or reasons.get(name, "")
        failed = word not in ("passed", "skipped", "xfail")
        rows.append({"test": name, "outcome": word, "reason": why, "failed": failed})
    return rows


# Steps of fine-tuning

NAMES = {
    "paper": "ResNet38 + BERT-base",
    "cnn14": "CNN14 + BERT-base",
    "mn04": "mn04 + BERT of MiniLM's size",
    "smallest": "the compact encoder + a small BERT",
}
UNCOMPILED = next(iter(step.ONE_OFF))


def _step(content: dict[str, Any], part: str, how: str, **changes: Any) -> Case:
    size = step.SIZES["cuda"] | {"device": "cuda", "variant": UNCOMPILED}
    if content["smoke"]:  # in float32: bf16 is slow on a CPU
        size |= {"batch": 2, "seconds": 1.0, "network": "smallest", "device": "cpu", "variant": "bf16 off"}
    return Case(part, how, "step.ours", size | changes)


def step_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    networks = ("smallest",) if content["smoke"] else ("paper", "cnn14", "mn04")
    cases = [_step(content, "steps", NAMES[network], network=network) for network in networks]
    for row in measured(cases, deadline):
        if "flops" in row:
            row["flops_a_second"] = row["flops"] / row["seconds"]
            row["of_product"] = row["flops_a_second"] / row["product_flops_a_second"]
            row["of_peak"] = row["flops_a_second"] / content["bf16_peak"] if content["bf16_peak"] else None
        yield row


def switch_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    cases = [_step(content, "switches", name, variant=name, detail=False) for name in step.ONE_OFF]
    if content["smoke"]:
        cases[-1] = Case("switches", cases[-1].how, "", missing="compiling waits on a GPU")
    reference = None
    for row in measured(cases, deadline):
        if row["how"] == UNCOMPILED:
            reference = row.get("seconds")
        if reference and "seconds" in row:
            row["against_all_on"] = row["seconds"] / reference
        yield row


def memory_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    batch, chunk = (8, 2) if content["smoke"] else (step.LARGE_BATCH, 32)
    ways: dict[str, int | None] = {"the whole batch at once": None, f"in chunks of {chunk}": chunk}
    cases = [_step(content, "memory", how, batch=batch, chunk=size, detail=False) for how, size in ways.items()]
    yield from measured(cases, deadline)


# Text-aware scoring


def scoring(tf32: bool, **size: Any) -> dict[str, Any]:
    """All pairs scored by text-aware pooling, as `text_aware.folded` has it, with and without TF32."""
    with Switches(tf32=tf32).on():
        return text_aware.folded(**size)


def scoring_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    smoke = content["smoke"]
    size = dict(text_aware.SIZES["smoke" if smoke else "paper"])
    size |= {"clips": max(size["clips"]), "device": "cpu" if smoke else "cuda"}
    cases = [
        Case("text_aware", how, "gpu.scoring", size | {"tf32": tf32})
        for how, tf32 in (("TF32", True), ("float32", False))
    ]
    for row in measured(cases, deadline):
        if "seconds" in row:
            row["pairs_a_second"] = row["size"]["clips"] * row["size"]["captions"] / row["seconds"]
        yield row


# Hours of the published tables

ALIKE = ("audio_encoder", "text_encoder", "text_layers", "head", "precision")


def _plan(content: dict[str, Any]) -> dict[Path, Any]:
    """By notebook: the runs of its grid that train, with the sizes of their corpora."""
    from atr.experiments import study
    from atr.experiments.profiles import get_profile

    profile = "smoke" if content["smoke"] else "paper"
    paths = study.notebooks(["01"] if content["smoke"] else (), get_profile(profile))
    plans = {path: study.plan([path], profile) for path in paths}
    trained = {path: [config.training != "external" for config in plan["config"]] for path, plan in plans.items()}
    return {path: plan[trained[path]] for path, plan in plans.items() if any(trained[path])}


def kind(config: RunConfig) -> dict[str, Any]:
    """What decides what a step of a config costs, but for the width of its heads: fields of a RunConfig. From scratch
    costs what fine-tuning does, SpecAugment and dropout next to nothing.
    """
    training = "finetuned" if config.training == "scratch" else config.training
    patchout = config.augment == "patchout" and training != "frozen"
    pooling = config.text_aware and {**config.text_aware, "dropout": 0.1}
    found = {name: getattr(config, name) for name in ALIKE}
    return found | {"training": training, "augment": "patchout" if patchout else None, "text_aware": pooling}


def cost(fields: dict[str, Any], device: str) -> dict[str, Any]:
    """What planning measures of the networks of a config, and seconds of a step of 32 pairs of 10 s."""
    found = planning.measure(RunConfig(**fields), device)
    at_ten = found.at(10.0)
    return {"measured": asdict(found), "seconds": at_ten.fixed + 32 * at_ten.pair}


def cost_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    widths: dict[str, int] = {}
    for plan in _plan(content).values():
        for config in plan["config"]:
            key = json.dumps(kind(config))
            widths[key] = max(widths.get(key, 0), config.embedding_dim)
    device = "cpu" if content["smoke"] else "cuda"
    cases = []
    for key, width in widths.items():
        fields = json.loads(key)
        words = [f"{fields['audio_encoder']} + {fields['text_encoder']}"]
        words += [{"frozen_released": "frozen in training mode"}.get(fields["training"], fields["training"])]
        words += ["text-aware"] * bool(fields["text_aware"]) + ["patchout"] * bool(fields["augment"])
        words += [{"32": "float32"}.get(fields["precision"], fields["precision"])]
        arguments = {"fields": fields | {"embedding_dim": width}, "device": device}
        cases.append(Case("costs", ", ".join(words), "gpu.cost", arguments))
    for row, key in zip(measured(cases, deadline), widths, strict=True):
        yield row | {"kind": key}


def hour_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    costs = {row["kind"]: row for row in content["parts"]["costs"]["rows"]}
    every: dict[str, planning.Cost] = {}
    for path, plan in _plan(content).items():
        row: Row = {"how": path.stem, "reproduces": _published(path), "runs": len(plan)}
        needs: dict[str, planning.Cost] = {}
        missing = set()
        for config, size in zip(plan["config"], plan["size"], strict=True):
            costly = costs.get(json.dumps(kind(config)), {})
            if "measured" in costly:
                needs[_key(config)] = planning.cost(config, planning.Measured(**costly["measured"]), size)
            else:
                missing.add(costly.get("how", "a kind of run"))
        every |= needs
        yield row | ({"error": f"no step of {'; '.join(sorted(missing))}"} if missing else _sum(needs))
    if every:
        yield {"how": "all that were measured, each run once", "reproduces": "", "runs": len(every), **_sum(every)}


def _key(config: RunConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)


def _sum(needs: dict[str, planning.Cost]) -> dict[str, float]:
    seconds = sum(need.seconds for need in needs.values())
    return {"steps": sum(need.steps for need in needs.values()), "hours": seconds / 3600}


def _published(notebook: Path) -> str:
    """The paper and tables that a notebook reproduces, as its first cell says; "" where it names none."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [line.strip() for line in "".join(cells[0]["source"]).splitlines() if line.strip()]
    return next((line for line in lines[1:2] if re.search(r"\b20\d\d\b", line)), "")


# The page


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
    "a step": lambda row: duration(row["seconds"]),
    "clips/s": lambda row: _number(row["clips_a_second"]),
}
MEMORY: dict[str, Callable[[Row], Any]] = {"GiB at most": lambda row: _number(row["memory_gib"])}

PARTS = {
    "tests": Part(
        "Tests that need a GPU",
        "Of tests/test_cuda.py and tests/test_precision.py, by pytest.",
        125,
        cuda_tests,
        {"test": lambda row: row["test"], "outcome": lambda row: row["outcome"], "why": lambda row: row["reason"]},
    ),
    "steps": Part(
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
    "switches": Part(
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
            "first step": lambda row: duration(row["first_seconds"]),
        },
    ),
    "memory": Part(
        "Memory of a large batch",
        "ResNet38 and BERT-base, as in the step above: tensors on the device at most, weights and Adam's state among "
        "them. In chunks each pair is embedded twice (`RunConfig(chunk=…)`).",
        40,
        memory_rows,
        {"batch": lambda row: row["size"]["batch"], "embedded": lambda row: row["how"], **MEMORY, **TIMES},
    ),
    "text_aware": Part(
        "Text-aware scoring",
        "Every caption pools the frames of every clip, at the sizes of Clotho's test split with ATST's frames.",
        30,
        scoring_rows,
        {
            "clips": lambda row: row["size"]["clips"],
            "captions": lambda row: row["size"]["captions"],
            "products in": lambda row: row["how"],
            "all pairs": lambda row: duration(row["seconds"]),
            "pairs/s": lambda row: _number(row["pairs_a_second"]),
            **MEMORY,
        },
    ),
    "costs": Part(
        "A step of each kind of run in the published grids",
        "32 pairs of 10 s, with the device's switches and the precision of the paper; what the hours below rest on.",
        95,
        cost_rows,
        {"run": lambda row: row["how"], "a step": lambda row: duration(row["seconds"])},
    ),
    "hours": Part(
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


def _cells(part: Part, row: Row) -> list[str]:
    """A row's cells; where it has no result, its first ones and in the last why."""
    cells = []
    for cell in part.columns.values():
        try:
            cells.append(str(cell(row)))
        except KeyError:
            cells.append("")
    return [*cells[:-1], _why(row) or cells[-1]]


def _line(part: Part, row: Row) -> str:
    """A row on one line, as it is said while the rest is measured."""
    first, *cells = _cells(part, row)
    named = [f"{title} {cell}" for title, cell in zip(list(part.columns)[1:], cells, strict=True) if cell]
    return ", ".join([first, *([_why(row)] if _why(row) else named)])


def page(content: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    versions = content["machine"]["versions"]
    where = [content["device"], f"driver {content['driver']}" if content["driver"] else "", f"CUDA {content['cuda']}"]
    where += [f"PyTorch {versions['torch']}", f"transformers {versions['transformers']}"]
    where += [f"Python {content['machine']['python']}", f"commit {content['machine']['commit'] or 'not known'}"]
    peak = content["bf16_peak"]
    lines = ["# On the CPU, in miniature: no measurement" if content["smoke"] else "# What a GPU shows", ""]
    lines += [f"{', '.join(filter(None, where))}.", ""]
    lines += [f"`{content['command']}`, {content['began']}, {content['seconds']:.0f} s so far or in all.", ""]
    known = f"{peak / 1e12:,.1f} TFLOP/s, by its data sheet" if peak else "not known"
    lines += [f"Dense bf16 peak of the device: {known}.", ""]
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
