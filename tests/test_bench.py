"""What measures the parts: each case does the work that it says, ways of doing the same come to the same numbers."""

import importlib
import json
import math
import os

import pytest
import torch
from typer.testing import CliRunner

from atr.bench import evaluation, figures, goals, harness, needs, step, text_aware
from atr.bench.harness import Case, ReleasedCode, timed
from atr.bench.released import definitions
from atr.cli.app import app
from atr.experiments import planning, study
from atr.inference import neighbours
from atr.system import hashes, places, units


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.delenv("ATR_MEI2022", raising=False)
    monkeypatch.delenv("ATR_TYMOFIEIEV2025", raising=False)
    return tmp_path


def here(case):
    """A case's row, measured in this process."""
    module, _, name = case.function.partition(".")
    return case.row() | getattr(importlib.import_module(f"atr.bench.{module}"), name)(**case.arguments)


@pytest.mark.parametrize("part", [part for part in harness.PARTS if part != "frozen"])
def test_every_case_of_a_part_is_measured(part, monkeypatch, store):
    monkeypatch.setattr(neighbours, "LIMIT", neighbours.LIMIT)  # the search lowers it in its own process
    measured = []
    for case in harness.cases([part], "smoke", "cpu", ReleasedCode()):
        if not case.missing:
            row = here(case)
            json.dumps(row)
            assert 0 < row["seconds"] < 60 and row.get("fastest", 0) <= row["seconds"], row
            measured.append(row)
    assert measured
    assert (goals.agreement(measured)["difference"] < 1e-4).all()


def test_a_frozen_study_that_keeps_its_features_learns_what_one_that_does_not_learns(store):
    cases = [
        case
        for case in harness.cases(["frozen"], "smoke", "cpu", ReleasedCode())
        if case.arguments["shape"] == "Clotho"
    ]
    rows = [here(case) for case in cases]
    assert [row["how"] for row in rows] == ["atr", "anew in every epoch"]
    assert rows[0]["first_loss"] == pytest.approx(rows[1]["first_loss"], abs=1e-4) and rows[0]["epochs"] == 2
    once = rows[1]["ready_seconds"] + rows[1]["epoch_seconds"]
    assert once < rows[1]["seconds"] < 3 * once  # one epoch was timed, two are counted


def test_a_case_has_a_process_of_its_own_and_is_measured_once(store):
    seen = []
    first = harness.run(["evaluation"], "smoke", on_row=seen.append)
    assert seen == first["rows"] and first["scale"] == "smoke" and first["released"] == {}
    ours = [row for row in first["rows"] if row["how"] == "atr"]
    assert len(ours) == 2 and all(0.05 < row["memory_gib"] < 8 for row in ours)
    assert {row["missing"] for row in first["rows"] if "missing" in row} == {"needs the released code of Mei 2022"}
    assert harness.run(["evaluation"], "smoke")["rows"] == first["rows"]  # to the last digit of a second
    again = harness.run(["evaluation"], "smoke", again=True)["rows"]
    assert [row["seconds"] for row in again if "seconds" in row] != [row["seconds"] for row in ours]


def test_what_was_measured_counts_until_the_code_behind_it_changes(monkeypatch):
    key = harness._code.__wrapped__
    before = {part: key(part) for part in ("evaluation", "mining", "frozen")}
    assert len(set(before.values())) == 3
    usual = hashes.file_hash
    monkeypatch.setattr(hashes, "file_hash", lambda file: "new" if file.name == "batches.py" else usual(file))
    changed = {part for part in before if key(part) != before[part]}
    assert changed == {"mining", "frozen"}  # evaluation draws no batches


def test_a_case_that_fails_says_which_and_why(store):
    case = Case("evaluation", "atr", "evaluation.ours", {"clips": -1, "dim": 2, "device": "cpu"})
    with pytest.raises(RuntimeError, match=r"evaluation, atr \(clips -1, dim 2, device cpu\): RuntimeError: "):
        harness.measure(case)


def test_unknown_parts_and_scales_are_refused():
    with pytest.raises(ValueError, match="unknown part 'speed'; known: frozen, evaluation"):
        harness.cases(["speed"], "smoke", "cpu", ReleasedCode())
    with pytest.raises(ValueError, match="scale: unknown 'huge'; known: smoke, demo, paper"):
        harness.cases([], "huge", "cpu", ReleasedCode())


def test_work_is_timed_by_the_median_of_repeats_and_slow_work_once(monkeypatch):
    times = iter([3.0, 5.0, 1.0, 2.0])  # the first one warms up
    monkeypatch.setattr("atr.bench.harness.once", lambda work, device: next(times))
    assert timed(lambda: None, repeats=3) == {"seconds": 2.0, "fastest": 1.0, "slowest": 5.0, "repeats": 3}
    times = iter([20.0, 12.0, 13.0, 14.0])  # half a minute is enough
    assert timed(lambda: None, repeats=9) == {"seconds": 13.0, "fastest": 12.0, "slowest": 14.0, "repeats": 3}
    times = iter([61.0])
    assert timed(lambda: None, repeats=3) == {"seconds": 61.0, "fastest": 61.0, "slowest": 61.0, "repeats": 1}


RELEASED = """
import nothing_that_exists
from nowhere import all_of_it

def doubled(x):
    return 2 * x * torch.ones(1)

class Pooling:
    def rank(self, x):
        return self.weight * x
"""


def test_released_functions_run_without_what_their_file_imports(tmp_path):
    (tmp_path / "code.py").write_text(RELEASED)
    found = definitions(tmp_path / "code.py", ("doubled", "Pooling", "Pooling.rank"), {"torch": torch})
    assert float(found["doubled"](3)) == 6
    pooling = found["Pooling"]()
    pooling.weight = 4
    assert found["Pooling.rank"](pooling, 2) == 8 == pooling.rank(2)
    with pytest.raises(ValueError, match=r"code.py: does not define tripled; give a clone"):
        definitions(tmp_path / "code.py", ("doubled", "tripled"), {})
    with pytest.raises(ValueError, match=r"other.py: cannot be read \(No such file"):
        definitions(tmp_path / "other.py", ("doubled",), {})


# In the manner of the released code, by its names and arguments: a row a caption, audio repeated; the scores of a clip.
MANNER = """
def t2a(audio_embs, cap_embs):
    scores = cap_embs @ audio_embs[::5].T
    ranks = np.array([np.sum(row > row[number // 5]) for number, row in enumerate(scores)])
    recalls = [100.0 * np.mean(ranks < k) for k in (1, 5, 10, 50)]
    return *recalls, np.floor(np.median(ranks)) + 1, ranks.mean() + 1

def a2t(audio_embs, cap_embs):
    return None

class TextAwareAttentionPooling(nn.Module):
    def __init__(self, model_dim, qkv_dim, p_dropout_weights, p_dropout_proj):
        super().__init__()
        self.w_q, self.w_k, self.w_v = (nn.Linear(model_dim, qkv_dim) for _ in range(3))
        self.w_0, self.layer_norm = nn.Linear(qkv_dim, model_dim), nn.LayerNorm(model_dim)

class AudioRetrievalModel:
    def rank_sequences(self, audio_features, audio_mask, sentence_features, sentence_mask):
        pool, scores = self.text_aware_pooling, []
        for audio in audio_features:
            heard = pool.layer_norm(audio)
            asked = pool.w_q(pool.layer_norm(sentence_features[:, 0]))
            pooled = F.scaled_dot_product_attention(asked, pool.w_k(heard), pool.w_v(heard))
            sentence_features = F.normalize(sentence_features, dim=-1)
            scores.append((F.normalize(pool.layer_norm(pool.w_0(pooled)), dim=-1) * sentence_features[:, 0]).sum(-1))
        return torch.stack(scores, 1)
"""


def test_code_in_the_manner_of_the_released_agrees_with_ours(tmp_path):
    for name in ("tools/utils.py", "experiments/ex_dcase24.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(MANNER)
    theirs = evaluation.as_released(str(tmp_path), 20, 32)
    ours = evaluation.ours(20, 32, "cpu")
    assert theirs["scores"] == ours["scores"] and 0 < ours["scores"]["t2a_r1"] < 100
    size = {"clips": 3, "captions": 7, "frames": 11, "dim": 16, "projection": 32, "device": "cpu"}
    ours = text_aware.ours(**size)["scores"]
    assert text_aware.as_released(str(tmp_path), **size)["scores"] == pytest.approx(ours, abs=1e-6)


def row(part, how, size, **values):
    return {"part": part, "how": how, "size": size, **values}


def rows():
    study = {"shape": "Clotho", "clips": 32, "network": "paper"}
    size, large, few = ({"clips": clips, "dim": 1024} for clips in (1045, 10_000, 4))
    return [
        row("frozen", "atr", study, seconds=2.0, first_loss=1.0),
        row("frozen", "anew in every epoch", study | {"timed_epochs": 1}, seconds=300.0, first_loss=1.25),
        row("evaluation", "atr", size, seconds=0.1, memory_gib=0.5, scores={"a": 1.0}),
        row("evaluation", "released code", size, seconds=7.0, scores={"a": 1.5}),
        row("evaluation", "atr", large, seconds=30.0, memory_gib=2.5),
        row("text_aware", "atr", few, seconds=1.0),
        row("text_aware", "released code", few, missing="needs the released code"),
        row("step", "atr, plain", {"batch": 4}, seconds=2.0, clips=4),
        row("step", "atr, large batch", {"batch": 128}, missing="needs a GPU"),
        row("pipeline", "atr", {"batch": 4}, seconds=0.5, served=256),
    ]


def test_goals_are_held_against_what_was_measured():
    table = goals.table(rows(), "cpu").set_index("work")
    told = {work: (line["factor"], line["reached"]) for work, line in table.iterrows()}
    assert told["frozen study, Clotho's shape, against encoding anew in every epoch"] == (150.0, "yes")
    assert told["frozen study, AudioCaps's shape, against encoding anew in every epoch"][1].startswith("not measured")
    factor, word = told["evaluation, 1,045 × 5,225, D 1024, against the released loop"]
    assert factor == pytest.approx(70) and word == "no"
    assert told["evaluation, 10,000 × 50,000"][1] == "no"  # in time, but in too much memory
    assert told["text-aware scoring, against the released loop"][1] == "not measured: needs the released code"
    assert told["input pipeline"] == (256.0, "yes")
    gpu = [word for work, (_, word) in told.items() if "at its best" in work or "B 128" in work]
    assert len(gpu) == 2 and all(word.startswith("not measured: needs a GPU") for word in gpu)
    apart = goals.agreement(rows())
    assert dict(zip(apart["part"], apart["difference"], strict=True)) == {"frozen": 0.25, "evaluation": 0.5}


def test_on_a_gpu_the_best_step_is_held_against_the_released_one():
    size = {"batch": 32}
    step_rows = [
        row("step", how, size | {"variant": how}, seconds=seconds, clips=32, memory_gib=9.0)
        for how, seconds in (("atr, plain", 0.5), ("atr, all", 0.2), ("atr, large batch", 0.8))
    ]
    step_rows.append(row("step", "released code", size, seconds=0.7, clips=32))
    table = goals.table(step_rows, "cuda").set_index("work")
    best = table.loc["fine-tuning step, ResNet38 and BERT, against the released code: at its best"]
    assert best["factor"] == pytest.approx(3.5) and best["reached"] == "yes"
    equal = table.loc["fine-tuning step, ResNet38 and BERT, against the released code: in float32, no TF32"]
    assert equal["factor"] == pytest.approx(1.4) and equal["reached"] == ""
    assert table.loc["fine-tuning, B 128", "reached"] == "yes"


def test_a_measurement_leaves_the_homes_as_they_were(monkeypatch):
    monkeypatch.setenv("ATR_HOME", "mine")
    monkeypatch.delenv("ATR_RESULTS")
    with pytest.raises(KeyError), harness.scratch() as folder:
        assert places.home() == folder / "home" and places.results_home() == folder / "results"
        raise KeyError
    assert os.environ["ATR_HOME"] == "mine" and "ATR_RESULTS" not in os.environ and not folder.exists()


def test_hours_of_the_published_grids_are_summed_on_a_gpu_and_not_guessed_on_a_cpu(monkeypatch):
    sizes = dict.fromkeys(("activations", "parameters", "trained", "checkpoint", "copy"), 0.0)
    measured = planning.Measurement(fixed=0.0, pair=0.01, clip=0.002, caption=0.001, seconds=10.0, **sizes)
    path = study.notebooks(["01"])
    monkeypatch.setattr(needs, "measure", lambda config, device: measured)
    monkeypatch.setattr(needs.torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(study, "notebooks", lambda *given: path)
    assert goals.hours("cpu").empty
    (line,) = goals.hours("cuda").itertuples()
    configs = study.plan(path, "paper")["config"]
    seconds = sum(planning.cost(config, measured, planning.size(config, None)).seconds for config in configs)
    assert (line.notebook, line.runs) == ("01_loss_comparison", len(configs))
    assert line.hours == pytest.approx(seconds / 3600) and line.hours > 1


def test_growth_is_the_slope_between_the_two_largest_sizes():
    made = [
        {"part": "mining", "how": "hard", "size": {"pairs": pairs}, "seconds": 1e-6 * pairs**2 + 5 * (pairs == 10)}
        for pairs in (1000, 10, 100)
    ]
    made.append({"part": "evaluation", "how": "atr", "size": {"clips": 10}, "seconds": 1.0})
    table = figures.growth(made)
    assert list(table["part"]) == ["mining"] and table["exponent"].iloc[0] == pytest.approx(2)
    assert (table["from"].iloc[0], table["to"].iloc[0]) == (10, 1000)


def test_the_shares_of_a_step_are_whole_and_a_product_has_a_speed():
    layer = torch.nn.Conv1d(4, 4, 3)
    shares = step.shares(lambda: layer(torch.randn(2, 4, 1000)).sum().backward(), "cpu")
    assert math.isclose(sum(shares.values()), 1, abs_tol=1e-3) and shares["convolution"] > 0.05
    assert step.product("cpu", "32", size=256) > 1e6


def test_the_command_measures_prints_the_goals_and_writes_json(store):
    path = store / "measured.json"
    done = CliRunner().invoke(app, ["bench", "evaluation", "--scale", "smoke", "--device", "cpu", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert "evaluation, atr (clips 20, dim 32)" in done.output and "Goals" in done.output
    written = json.loads(path.read_text())
    assert (
        written["machine"]["cores"] and written["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    )
    assert written["command"].startswith("atr ") and len(written["rows"]) == 6
    listed = CliRunner().invoke(app, ["bench", "--list"])
    assert listed.exit_code == 0 and all(part in listed.output for part in harness.PARTS)
    wrong = CliRunner().invoke(app, ["bench", "speed"])
    assert wrong.exit_code == 1 and "unknown part 'speed'" in wrong.output


def test_seconds_are_said_in_fitting_units():
    assert [units.seconds(value) for value in (0.0123, 3.456, 7560)] == ["12.3 ms", "3.46 s", "2.1 h"]


def test_no_figure_needs_all_parts():
    some = [row for row in rows() if "missing" not in row]
    panels = [axis for axis in figures.sizes(some).axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["frozen", "evaluation", "text-aware", "pipeline"]
    frozen = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panels[0].lines}
    assert frozen == {"atr, Clotho": ([32], [2.0]), "anew in every epoch, Clotho": ([32], [300.0])}
    speeds, _ = figures.steps(some).axes
    assert [bar.get_width() for bar in speeds.patches] == [2.0]  # clips a second of the plain step
    assert not any(axis.lines for axis in figures.recalls(some).axes)
