"""`make gpu`: each part measures what it says, a run cut short counts, and what fails does not stop the rest."""

import importlib
import inspect
import json
import math
import subprocess
import time

import pytest
import torch
from typer.testing import CliRunner

from atr.bench import harness, needs, step
from atr.bench.gpu import measure, page, parts
from atr.bench.harness import Case, machine
from atr.bench.released import NETWORKS
from atr.cli.app import app
from atr.config import RunConfig
from atr.experiments import planning, study
from atr.system import places

MINIATURE = """
import pytest

@pytest.mark.parametrize("name", ["a", "b"])
def test_passes(name):
    assert name in "ab"

def test_skips():
    pytest.skip("no GPU")
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Folder and content of a whole run in miniature, with tests that take no time."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "test_it.py").write_text(MINIATURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SMOKE_TESTS", (str(folder / "test_it.py"),))
        return folder, measure.run(folder, smoke=True, command="make gpu SMOKE=1", say=lambda line: None)


def rows_of(content, part):
    return content["parts"][part]["rows"]


class TestMiniature:
    def test_every_part_has_rows_and_nothing_failed(self, smoke):
        content = smoke[1]
        assert list(content["parts"]) == list(page.PARTS) and measure.failures(content) == []
        assert all(rows_of(content, part) for part in page.PARTS)

    def test_what_was_measured_is_finite_and_positive(self, smoke):
        content = smoke[1]
        for part in ("steps", "switches", "memory", "text_aware", "costs"):
            for row in (row for row in rows_of(content, part) if "missing" not in row):
                assert 0 < row["seconds"] < 60 and 0.05 < row["memory_gib"] < 16, row
        rates = [
            row["clips_a_second"] for part in ("steps", "switches", "memory") for row in rows_of(content, part)[:2]
        ]
        rates += [row["pairs_a_second"] for row in rows_of(content, "text_aware")]
        rates += [row["hours"] for row in rows_of(content, "hours")]
        assert all(math.isfinite(rate) and rate > 0 for rate in rates) and len(rates) == 9

    def test_a_rate_is_what_was_done_over_the_time(self, smoke):
        (row,) = rows_of(smoke[1], "steps")
        assert row["clips_a_second"] == pytest.approx(2 / row["seconds"])
        assert row["flops_a_second"] == pytest.approx(row["flops"] / row["seconds"]) and row["flops"] > 1e6
        assert row["of_product"] == pytest.approx(row["flops_a_second"] / row["product_flops_a_second"])
        assert row["of_peak"] is None

    def test_each_switch_is_held_against_all_on(self, smoke):
        rows = rows_of(smoke[1], "switches")
        assert [row["how"] for row in rows] == list(step.ONE_OFF)
        assert rows[0]["against_all_on"] == 1
        assert all(row["against_all_on"] == row["seconds"] / rows[0]["seconds"] for row in rows[1:-1])
        assert rows[-1]["missing"] == "compiling waits on a GPU"

    def test_a_batch_is_embedded_whole_and_in_chunks(self, smoke):
        assert [(row["clips"], row["size"]["chunk"]) for row in rows_of(smoke[1], "memory")] == [(8, None), (8, 2)]

    def test_tests_are_recorded_by_name(self, smoke):
        found = [(row["test"].rpartition("/")[2], row["outcome"], row["reason"]) for row in rows_of(smoke[1], "tests")]
        passed = [(f"test_it.py::test_passes[{name}]", "passed", "") for name in "ab"]
        assert found == [*passed, ("test_it.py::test_skips", "skipped", "no GPU")]

    def test_what_is_written_names_the_machine_and_reads_as_a_page(self, smoke):
        folder, content = smoke
        written = json.loads((folder / "smoke.json").read_text())
        assert written == json.loads(json.dumps(content))
        assert written["command"] == "make gpu SMOKE=1" and written["machine"]["versions"]["torch"]
        text = (folder / "smoke.md").read_text()
        for part in page.PARTS.values():
            assert f"## {part.title}\n" in text
        assert "| peak not known |" in text and "in miniature" in text.splitlines()[0]
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert len(tables) == sum(2 + len(rows_of(content, part)) for part in page.PARTS)
        assert not (folder / "gpu.json").exists()  # a measurement is not overwritten


def fake(rows):
    return page.PageTable("A part", "", 5, rows, {"how": lambda row: row["how"], "value": lambda row: row["value"]})


def test_a_run_that_is_cut_short_keeps_what_it_has(monkeypatch, tmp_path):
    def whole(content, deadline):
        yield {"how": "first", "value": 1}
        yield {"how": "second", "error": "out of memory\nand more"}

    def broken(content, deadline):
        yield {"how": "third", "value": 3}
        raise OSError("the card fell off")

    def interrupted(content, deadline):
        yield {"how": "fourth", "value": 4}
        raise KeyboardInterrupt

    ways = {"whole": whole, "broken": broken, "interrupted": interrupted, "last": whole}
    monkeypatch.setattr(page, "PARTS", {name: fake(rows) for name, rows in ways.items()})
    with pytest.raises(KeyboardInterrupt):
        measure.run(tmp_path, smoke=True, say=lambda line: None)
    written = json.loads((tmp_path / "smoke.json").read_text())
    assert [len(rows_of(written, part)) for part in written["parts"]] == [2, 1, 1]
    assert written["parts"]["broken"]["error"] == "OSError: the card fell off"
    text = (tmp_path / "smoke.md").read_text()
    assert "| first | 1 |" in text and "| second | not measured: out of memory |" in text
    assert "Not measured to its end: OSError: the card fell off" in text and "Not reached: A part." in text
    assert measure.failures(written) == [
        "whole: second: out of memory\nand more",
        "broken: OSError: the card fell off",
    ]


def test_no_part_begins_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(harness, "measure", lambda case, limit, threads: pytest.fail("measured"))
    case = Case("steps", "late", "step.ours")
    (row,) = parts.measure_cases([case], time.monotonic() + 1)
    assert row == case.row() | {"error": "no time was left"}


def test_what_a_part_leaves_the_next_may_use_and_all_end_within_nine_minutes(monkeypatch, tmp_path):
    deadlines = []

    def rows(content, deadline):
        deadlines.append(deadline - time.monotonic())
        yield {"how": "one", "value": 1}

    assert 480 < sum(part.seconds for part in page.PARTS.values()) <= 515  # PyTorch takes a while to start
    monkeypatch.setattr(page, "PARTS", {"first": fake(rows), "second": fake(rows)})
    measure.run(tmp_path, smoke=True, say=lambda line: None)
    assert deadlines == [pytest.approx(5, abs=1), pytest.approx(10, abs=1)]


def test_a_measurement_that_takes_too_long_is_ended():
    case = Case("evaluation", "slow", "evaluation.loop", {"clips": 5000, "dim": 64})
    (row,) = parts.measure_cases([case], time.monotonic() + parts.LEAST_SECONDS + 0.5)
    assert row == case.row() | {"error": "ended after 3 s"}


def test_tests_that_take_too_long_are_ended_and_those_before_count(monkeypatch, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_quick():\n    assert 1 == 2\ndef test_slow():\n    time.sleep(60)\n"
    )
    monkeypatch.setattr(parts, "SMOKE_TESTS", (str(tmp_path / "test_it.py"),))
    content = {"smoke": True, "parts": {"tests": {}}}
    rows = list(parts.cuda_tests(content, time.monotonic() + 6))
    assert [row["outcome"] for row in rows] == ["failed", "not finished in time"] and all(row["failed"] for row in rows)
    assert "test_quick" in content["parts"]["tests"]["output"]


def test_where_no_test_can_run_it_says_why(monkeypatch, tmp_path):
    (tmp_path / "test_it.py").write_text("import nothing_of_that_name\n")
    monkeypatch.setattr(parts, "SMOKE_TESTS", (str(tmp_path / "test_it.py"),))
    content = {"smoke": True, "parts": {"tests": {}}}
    with pytest.raises(RuntimeError, match=r"no test ran: ERROR .*test_it.py"):
        list(parts.cuda_tests(content, time.monotonic() + 60))


SAID = """
tests/test_cuda.py::test_a[x-1] PASSED                    [ 25%]
tests/test_cuda.py::test_b FAILED                         [ 50%]
tests/test_cuda.py::test_c SKIPPED (no GPU)               [ 75%]
tests/test_cuda.py::test_d ERROR                          [100%]
FAILED tests/test_cuda.py::test_b - AssertionError: 1 == 2
tests/test_cuda.py:12: AssertionError
tests/test_cuda.py::test_e"""


def test_outcomes_are_read_from_what_pytest_says():
    rows = parts.outcomes(SAID)
    words = ["passed", "failed", "skipped", "error", "not finished in time"]
    assert [row["outcome"] for row in rows] == words
    assert [row["failed"] for row in rows] == [False, True, False, True, True]
    assert rows[1]["reason"] == "AssertionError: 1 == 2" and rows[2]["reason"] == "no GPU"


def test_flops_are_those_counted_by_hand():
    linear, x = torch.nn.Linear(6, 4), torch.randn(3, 6)
    assert step.flops(lambda: linear(x)) == 2 * 3 * 6 * 4
    assert step.flops(lambda: linear(x).sum().backward()) == 2 * (2 * 3 * 6 * 4)  # and of its weights' gradient
    conv, image = torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 7)
    assert step.flops(lambda: conv(image)) == 2 * (2 * 5 * 8 * 7) * (3 * 3 * 3)


def test_the_share_of_a_cards_peak_is_never_a_guess(monkeypatch):
    measured = {"seconds": 0.1, "clips": 32, "flops": 4e12, "product_flops_a_second": 8e13, "memory_gib": 1.0}
    monkeypatch.setattr(harness, "measure", lambda case, limit, threads: case.row() | measured)
    shares = []
    for card in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        content = {"smoke": False, "bf16_peak": measure.BF16_PEAKS.get(card)}
        rows = list(parts.step_rows(content, time.monotonic() + 60))
        assert [row["how"].partition(" ")[0] for row in rows] == ["ResNet38", "CNN14", "mn04"]
        assert {row["size"]["batch"] for row in rows} == {32}
        shares.append(rows[0]["of_peak"])
    assert shares == [pytest.approx(4e13 / 989.4e12), None]


def test_the_networks_of_a_step_are_those_that_it_names():
    counts = {}
    for network in ("paper", "cnn14", "mn04"):
        name, sizes, dim = NETWORKS[network]
        config = RunConfig(training="finetuned", audio_encoder=name, text_encoder="bert-base-uncased", text_layers=None)
        with torch.device("meta"):
            model = needs.shell(config.replace(embedding_dim=dim), sizes)[0]
        both = model.audio_encoder, model.text_encoder
        counts[network] = [sum(p.numel() for p in encoder.parameters()) / 1e6 for encoder in both]
    assert counts["paper"][1] == counts["cnn14"][1] == pytest.approx(109, abs=1)  # BERT-base without its pooler
    assert counts["mn04"][1] == pytest.approx(22.6, abs=0.3)  # MiniLM
    assert counts["paper"][0] > 60 and counts["cnn14"][0] > 70 and counts["mn04"][0] < 2


def test_hours_are_the_sum_of_what_the_runs_of_a_grid_cost(monkeypatch):
    paths = study.notebooks(["01", "02", "09"])
    monkeypatch.setattr(study, "notebooks", lambda *given: paths)
    sizes = dict.fromkeys(("activations", "parameters", "trained", "checkpoint", "copy"), 0.0)
    measured = planning.Measurement(fixed=0.01, pair=0.002, clip=0.001, caption=0.001, seconds=10.0, **sizes)
    plans = {path: study.plan([path], "paper") for path in paths}
    kinds = {json.dumps(needs.cost_fields(config)): config for path in paths[:2] for config in plans[path]["config"]}
    assert 2 < len(kinds) < 10
    rows = [{"kind": key, "how": "a run", "measured": vars(measured)} for key in kinds]
    content = {"smoke": False, "parts": {"costs": {"rows": rows}}}
    first, second, third, every = parts.hour_rows(content, math.inf)
    for path, row in zip(paths, (first, second), strict=False):
        plan = plans[path]
        costs = [
            planning.cost(config, measured, size) for config, size in zip(plan["config"], plan["size"], strict=True)
        ]
        assert row["runs"] == len(plan) and row["steps"] == sum(cost.steps for cost in costs)
        assert row["hours"] == pytest.approx(sum(cost.seconds for cost in costs) / 3600)
    assert "table 1" in first["reproduces"] and "no step of a kind of run" in third["error"]
    assert max(first["hours"], second["hours"]) < every["hours"] < first["hours"] + second["hours"]


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    done = CliRunner().invoke(app, ["gpu"])
    assert done.exit_code == 1 and not (tmp_path / "out").exists()
    assert done.output.splitlines() == [
        "error: PyTorch sees no GPU here; every part in miniature, on the CPU: make gpu SMOKE=1"
    ]


def test_the_command_writes_to_out_and_ends_with_1_if_anything_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    for outcome, status in (("passed", 0), ("failed", 1)):
        row = {"how": "one", "value": 1, "test": "test_one", "outcome": outcome, "failed": outcome == "failed"}
        monkeypatch.setattr(page, "PARTS", {"tests": fake(lambda content, deadline, row=row: iter([row]))})
        done = CliRunner().invoke(app, ["gpu", "--smoke"])
        assert done.exit_code == status, done.output
        assert "tests: one, value 1" in done.output and "smoke.md" in done.output
    assert "tests: test_one: failed" in done.output and (tmp_path / "smoke.json").is_file()


def test_make_runs_it_by_the_python_that_is_named():
    make = ["make", "-n", "gpu", "SMOKE=1", "PY=python3"]
    said = subprocess.run(make, cwd=places.PROJECT, capture_output=True, text=True, check=True).stdout
    assert "python3 -m atr gpu --smoke" in said and "setup.sh" not in said and 'ATR_COMMAND="make gpu SMOKE=1"' in said


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Content of a run as on an H100, each case's arguments bound to its function, which is not called."""

    def pretend(case, limit, threads):
        assert case.arguments["device"] == "cuda" and limit > 0 and threads is None
        module, _, name = case.function.rpartition(".")
        function = getattr(importlib.import_module(f"atr.bench.{module}"), name)
        inspect.signature(function).bind(**case.arguments)
        sizes = dict.fromkeys(("activations", "parameters", "trained", "checkpoint", "copy"), 0.0)
        cost = planning.Measurement(fixed=0.02, pair=0.003, clip=0.001, caption=0.0005, seconds=10.0, **sizes)
        found = {"seconds": 0.112, "first_seconds": 2.3, "memory_gib": 18.4, "flops": 4_000_000_000_000}
        found |= {"product_flops_a_second": 7.2e14, "measured": vars(cost), "clips": case.arguments.get("batch", 1)}
        return case.row() | found

    (tmp_path / "test_it.py").write_text(MINIATURE)
    monkeypatch.setattr(parts, "TESTS", (str(tmp_path / "test_it.py"),))
    monkeypatch.setattr(harness, "measure", pretend)
    monkeypatch.setattr(harness, "machine", lambda device: {**machine("cpu"), "device": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which is set for a GPU
    return measure.run(tmp_path, command="make gpu", say=lambda line: None), (tmp_path / "gpu.md").read_text()


def test_on_a_gpu_each_part_asks_for_what_its_functions_take(pretended):
    content, text = pretended
    assert measure.failures(content) == []
    steps, switches, memory = (rows_of(content, part) for part in ("steps", "switches", "memory"))
    assert [row["size"]["network"] for row in steps] == ["paper", "cnn14", "mn04"]
    assert all(row["size"]["batch"] == 32 and row["of_peak"] == pytest.approx(4e12 / 0.112 / 989.4e12) for row in steps)
    assert [row["how"] for row in switches] == list(step.ONE_OFF)
    assert [(row["clips"], row["size"]["chunk"]) for row in memory] == [(128, None), (128, 32)]
    assert {row["size"]["clips"] * row["size"]["captions"] for row in rows_of(content, "text_aware")} == {1045 * 5225}
    runs = {row["how"][:2]: row["runs"] for row in rows_of(content, "hours")}
    assert len(runs) > 8 and runs["01"] > 100 and len(rows_of(content, "costs")) < 15
    assert "989.4 TFLOP/s, by its data sheet" in text and "not measured" not in text.lower()
