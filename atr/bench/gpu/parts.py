"""What each part measures: its rows, one after another, until its time is up."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atr.bench import harness, needs, step, text_aware
from atr.bench.harness import Case
from atr.config import RunConfig
from atr.experiments import planning
from atr.experiments.grid import key
from atr.system import atomic, places
from atr.system.devices import Switches

LEAST_SECONDS = 3.0  # below which no measurement begins
TESTS = ("tests/test_cuda.py", "tests/test_precision.py")
SMOKE_TESTS = ("tests/test_precision.py::test_bf16_agrees_with_float32_on_a_cpu",)

Row = dict[str, Any]


def measure_cases(cases: list[Case], deadline: float) -> Iterator[Row]:
    """A row of each case: what it comes to, or an error that says why there is nothing."""
    for case in cases:
        remaining = deadline - time.monotonic()
        if remaining < LEAST_SECONDS:
            yield case.row() | {"error": "no time was left"}
            continue
        try:
            row = harness.measure(case, remaining, threads=1 if case.arguments.get("device") == "cpu" else None)
        except harness.MeasurementError as error:
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
    with tempfile.TemporaryFile("w+") as log:
        options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
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
        log.seek(0)
        text = log.read()
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
    for row in measure_cases(cases, deadline):
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
    for row in measure_cases(cases, deadline):
        if row["how"] == UNCOMPILED:
            reference = row.get("seconds")
        if reference and "seconds" in row:
            row["against_all_on"] = row["seconds"] / reference
        yield row


def memory_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    batch, chunk = (8, 2) if content["smoke"] else (step.LARGE_BATCH, 32)
    ways: dict[str, int | None] = {"the whole batch at once": None, f"in chunks of {chunk}": chunk}
    cases = [_step(content, "memory", how, batch=batch, chunk=size, detail=False) for how, size in ways.items()]
    yield from measure_cases(cases, deadline)


# Text-aware scoring


def scoring(tf32: bool, **size: Any) -> dict[str, Any]:
    """All pairs scored by text-aware pooling, as `text_aware.ours` has it, with and without TF32."""
    with Switches(tf32=tf32).on():
        return text_aware.ours(**size)


def scoring_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    smoke = content["smoke"]
    size = dict(text_aware.SIZES["smoke" if smoke else "paper"])
    size |= {"clips": max(size["clips"]), "device": "cpu" if smoke else "cuda"}
    cases = [
        Case("text_aware", how, "gpu.parts.scoring", size | {"tf32": tf32})
        for how, tf32 in (("TF32", True), ("float32", False))
    ]
    for row in measure_cases(cases, deadline):
        if "seconds" in row:
            row["pairs_a_second"] = row["size"]["clips"] * row["size"]["captions"] / row["seconds"]
        yield row


# Hours of the published tables


def _plans(content: dict[str, Any]) -> dict[Path, Any]:
    return needs.plans("smoke", ["01"]) if content["smoke"] else needs.plans("paper")


def cost(fields: dict[str, Any], device: str) -> dict[str, Any]:
    """What a plan measures of the networks of a config, and seconds of a step of 32 pairs of 10 s."""
    measured = needs.measure(RunConfig(**fields), device)
    at_ten = measured.at(10.0)
    return {"measured": asdict(measured), "seconds": at_ten.fixed + 32 * at_ten.pair}


def cost_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    widths: dict[str, int] = {}
    for plan in _plans(content).values():
        for config in plan["config"]:
            kind = json.dumps(needs.cost_fields(config))
            widths[kind] = max(widths.get(kind, 0), config.embedding_dim)
    device = "cpu" if content["smoke"] else "cuda"
    cases = []
    for kind, width in widths.items():
        fields = json.loads(kind)
        words = [f"{fields['audio_encoder']} + {fields['text_encoder']}"]
        words += [{"frozen_released": "frozen in training mode"}.get(fields["training"], fields["training"])]
        words += ["text-aware"] * bool(fields["text_aware"]) + ["patchout"] * bool(fields["augment"])
        words += [{"32": "float32"}.get(fields["precision"], fields["precision"])]
        arguments = {"fields": fields | {"embedding_dim": width}, "device": device}
        cases.append(Case("costs", ", ".join(words), "gpu.parts.cost", arguments))
    for row, kind in zip(measure_cases(cases, deadline), widths, strict=True):
        yield row | {"kind": kind}


def hour_rows(content: dict[str, Any], deadline: float) -> Iterator[Row]:
    costs = {row["kind"]: row for row in content["parts"]["costs"]["rows"]}
    every: dict[str, planning.Cost] = {}
    for path, plan in _plans(content).items():
        row: Row = {"how": path.stem, "reproduces": _source_of(path), "runs": len(plan)}
        own: dict[str, planning.Cost] = {}
        missing = set()
        for config, size in zip(plan["config"], plan["size"], strict=True):
            costly = costs.get(json.dumps(needs.cost_fields(config)), {})
            if "measured" in costly:
                own[key(config)] = planning.cost(config, planning.Measurement(**costly["measured"]), size)
            else:
                missing.add(costly.get("how", "a kind of run"))
        every |= own
        yield row | ({"error": f"no step of {'; '.join(sorted(missing))}"} if missing else _sum(own))
    if every:
        yield {"how": "all that were measured, each run once", "reproduces": "", "runs": len(every), **_sum(every)}


def _sum(costs: dict[str, planning.Cost]) -> dict[str, float]:
    seconds = sum(one.seconds for one in costs.values())
    return {"steps": sum(one.steps for one in costs.values()), "hours": seconds / 3600}


def _source_of(notebook: Path) -> str:
    """The paper and tables that a notebook reproduces, as its first cell says; "" where it names none."""
    first = atomic.read_object(notebook)["cells"][0]["source"]
    lines = [line.strip() for line in "".join(first).splitlines() if line.strip()]
    return next((line for line in lines[1:2] if re.search(r"\b20\d\d\b", line)), "")
