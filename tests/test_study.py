import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pandas as pd
import pytest
import torch
from made_runs import made_run
from processes import alive, wait_until
from typer.testing import CliRunner

from atr import RunConfig, get_profile, losses, run_all
from atr.cli import app
from atr.cli import study as commands
from atr.corpora import corpus_of
from atr.experiments import executors, planning, progress, rates, study
from atr.experiments.grid import describe, key
from atr.experiments.notebooks import EXTERNAL
from atr.experiments.profiles import PROFILES as EVERY
from atr.experiments.study import StudyError
from atr.system import places, units
from atr.training import identity

PROFILES = [name for name, one in EVERY.items() if not one.notebooks]  # that serve all notebooks
FEWER = {"smoke": 2, "demo": 3, "esc10": 5, "esc50": 5, "paper": 3}  # seeds of controls and second tables

PATHS = study.notebooks()
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
NAMES = ["01_loss_comparison", "02_batch_size"]
FIRST = study.notebooks(NAMES)
LOSSES = {"triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"}


def grid(number, name, seeds=None):
    return study.grid(study.notebooks([number])[0], {"profile_name": name, "seeds": seeds})


def defined(number, name):
    """What the grid cell of a notebook defines."""
    return study.namespace(study.notebooks([number])[0], {"profile_name": name, "seeds": None})


def distinct(configs):
    return {json.dumps(config.to_dict(), sort_keys=True) for config in configs}


class TestNotebooks:
    @pytest.mark.parametrize("numbers", [["02", "1"], ["2", "01_loss_comparison"], ["02_batch_size", "01"]])
    def test_they_are_found_by_number_or_name_in_the_order_asked_for(self, numbers):
        assert [path.stem for path in study.notebooks(numbers)] == [NAMES[1], NAMES[0]]

    def test_all_of_them_without_numbers(self):
        assert [path.stem for path in PATHS][:3] == ["00_explore", *NAMES]

    def test_an_unknown_number_is_refused_with_the_known_ones(self):
        with pytest.raises(StudyError, match="no notebook '77'.*known: 00_explore, 01_loss_comparison"):
            study.notebooks(["77"])

    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
    def test_they_are_committed_without_outputs(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None

    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
    def test_they_take_the_same_parameters_and_open_with_their_question(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        space = {}
        exec(tagged[0].source, space)
        assert len(tagged) == 1
        found = {name: space[name] for name in ("profile_name", "seeds", "device", "executor")}
        profile = "esc50" if path.stem[:2] == EXTERNAL else "demo"
        assert found == {"profile_name": profile, "seeds": None, "device": "auto", "executor": "local"}
        assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source

    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
    def test_their_cells_are_short_and_the_grid_is_shown(self, path):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for source in (cell.source for cell in cells if not cell.source.startswith("%%")):
            defined = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
            assert len(source.split("\n")) <= 25 and len(defined) <= 1, source
        last = [cell.source for cell in cells if "grid" in cell.metadata.get("tags", [])][-1]
        assert last.endswith(("overview(grid)", "grid = []"))


class TestGrids:
    @pytest.mark.parametrize("name", PROFILES)
    def test_losses_by_corpora_trainings_rates_and_seeds(self, name):
        setting, configs = get_profile(name), grid("01", name)
        seeds, corpora = len(setting.seeds), len(setting.corpora)
        assert len(distinct(configs)) == len(configs)
        # four losses, two kinds of training; untrained besides, the first seed's tries and its twice the epochs, which
        # published and quick grids ask of one method alone; and all of it by a second recipe
        others = len(setting.recipes) - 1
        once = len(setting.tries) * 8 + (1 if setting.published or setting.quick else 8)
        once -= 4 * (setting.epochs["finetuned"] == 1)  # a quarter of one epoch is one
        assert len(configs) == corpora * (seeds * (8 + 1 + others * 8) + once)
        assert {config.loss["name"] for config in configs} == LOSSES
        assert {config.seed for config in configs} == set(setting.seeds)

    @pytest.mark.parametrize("name", PROFILES)
    def test_batch_sizes_as_published_and_on_equal_terms(self, name):
        setting, configs, cell = get_profile(name), grid("02", name), defined("02", name)
        assert {config.batch_size for config in configs} == set(cell["sizes"])
        assert {cell["small"], cell["large"]} <= set(cell["sizes"]) and cell["small"] < cell["large"]
        assert {config.training.removesuffix("_released") for config in configs} == {"frozen"}
        recipe = [c for configs in cell["published"].values() for c in configs]
        assert len(distinct(recipe)) == len(cell["sizes"]) * 4 * len(setting.seeds)
        assert {c.epochs for c in recipe} == {setting.epochs["frozen"]} and distinct(recipe) <= distinct(configs)
        steps = {c.epochs / c.batch_size for method in cell["equal"] for c in cell["search"].seeded(method)}
        assert len(steps) == (0 if setting.published else 1)

    @pytest.mark.parametrize("name", PROFILES)
    def test_the_notebooks_share_the_runs_and_tries_at_the_usual_batch_size(self, name):
        shared, setting = distinct(grid("01", name)) & distinct(grid("02", name)), get_profile(name)
        once = 0 if setting.published else 4 * len(setting.tries) + (1 if setting.quick else 4)
        assert len(shared) == 4 * len(setting.recipes) * len(setting.seeds) + once

    @pytest.mark.parametrize("name", ["demo", "esc50"])
    def test_a_smaller_size_than_the_published_ones(self, name):
        cell = defined("02", name)
        assert {32, 128} <= set(cell["sizes"]) and min(cell["sizes"]) < 32
        assert (cell["small"], cell["large"]) == (32, 128)

    def test_seeds_can_be_chosen(self):
        assert {config.seed for number in ("01", "02") for config in grid(number, "demo", [7, 8])} == {7, 8}

    def test_the_paper_grid_of_losses_is_the_published_one(self):
        configs = [config for config in grid("01", "paper") if config.epochs == 50 and config.recipe == "code"]
        assert len(configs) == 2 * 2 * 4 * 3
        published = pd.read_csv(places.PROJECT / "data" / "reference" / "mei2022_table1.csv")
        ours = {
            (c.corpus["name"], c.training == "finetuned", c.loss["name"], c.rate("heads"), c.batch_size)
            for c in configs
        }
        columns = ["dataset", "fine_tuned", "loss", "learning_rate", "batch_size"]
        assert set(published[columns].itertuples(index=False, name=None)) <= ours
        assert {config.rate(group) for config in configs for group in ("heads", "audio", "text")} == {1e-4, 5e-5}
        assert {(config.corpus["name"], config.batch_size) for config in configs} == {("audiocaps", 32), ("clotho", 24)}

    def test_the_texts_recipe_runs_each_published_cell_at_its_published_rate(self):
        configs = [config for config in grid("01", "paper", [0]) if config.recipe == "text"]
        published = pd.read_csv(places.PROJECT / "data" / "reference" / "mei2022_table1.csv")
        ours = [
            (c.corpus["name"], c.training == "finetuned", c.loss["name"], c.rate("heads"), c.batch_size)
            for c in configs
        ]
        columns = ["dataset", "fine_tuned", "loss", "learning_rate", "batch_size"]
        assert sorted(ours) == sorted(published[columns].drop_duplicates().itertuples(index=False, name=None))

    def test_the_paper_grid_of_batch_sizes_is_the_published_one(self):
        configs = grid("02", "paper")
        assert {config.batch_size for config in configs} == {32, 128}
        assert {config.corpus["name"] for config in configs} == {"audiocaps"}
        assert {config.rate("heads") for config in configs} == {1e-4}

    @pytest.mark.parametrize("name", PROFILES)
    def test_dimensions_by_seeds_and_rates_and_a_fine_tuned_pair(self, name):
        setting, configs, cell = get_profile(name), grid("03", name), defined("03", name)
        assert len(distinct(configs)) == len(configs)
        frozen = [c for c in configs if c.recipe == "code" and c.training != "finetuned"]
        epochs = setting.epochs["frozen"] * setting.wide_epochs
        whole = [c for c in frozen if c.epochs == epochs and c.rate("heads") == setting.rates["frozen"]["heads"]]
        seeds = {dim: {c.seed for c in whole if c.embedding_dim == dim} for dim in cell["dims"]}
        assert seeds == {dim: set(cell["many"] if dim <= 512 else setting.seeds) for dim in cell["dims"]}
        assert len(whole) == sum(map(len, seeds.values()))
        assert {c.epochs for c in frozen} - {epochs} == {2 * epochs, max(1, round(epochs / 4))}
        assert {c.batch_size for c in frozen} == {
            2 * setting.config(next(iter(setting.corpora)), "frozen", "nt_xent", 0).batch_size
        }
        tuned = [c for c in configs if c.recipe == "code" and c.training == "finetuned"]
        if setting.training == "frozen":
            assert not tuned
            return
        small, large = cell["two_dims"]
        assert {c.embedding_dim for c in tuned} == {small, large} and large == 2 * small
        whole = [c for c in tuned if c.epochs == setting.epochs["finetuned"]]
        usual = [c for c in whole if c.rate("heads") == setting.rates["finetuned"]["heads"]]
        assert len(usual) == 2 * FEWER[name] and {c.seed for c in tuned} == set(setting.seeds[: FEWER[name]])

    def test_the_paper_grid_of_dimensions_is_the_published_one(self):
        configs = [config for config in grid("03", "paper") if config.recipe == "code"]
        ours = {
            (c.corpus["name"], c.training == "finetuned", c.rate("heads"), c.batch_size, c.embedding_dim)
            for c in configs
        }
        columns = ["dataset", "fine_tuned", "learning_rate", "batch_size", "embedding_dim"]
        for number in (1, 2):
            published = pd.read_csv(places.PROJECT / "data" / "reference" / f"tourbabin2023_table{number}.csv")
            assert set(published[columns].itertuples(index=False, name=None)) <= ours
        assert all(c.pooling == "frequency_max" for c in grid("03", "paper") if c.recipe == "text")

    @pytest.mark.parametrize("name", PROFILES)
    def test_penalties_by_estimator_weight_and_seed(self, name):
        setting, configs = get_profile(name), grid("04", name)
        cell = defined("04", name)
        table4 = distinct(config.replace(seed=0) for config in cell["table4"].values())
        epochs = setting.epochs[setting.training]
        tuned = [c for c in configs if distinct([c.replace(seed=0, epochs=epochs)]) <= table4]
        assert {c.training for c in tuned} == {setting.training}
        assert {c.epochs for c in tuned} <= {n * epochs for n in (1, 2)}
        cells = {(c.penalty.get("estimator", "network"), c.penalty["alpha"], c.seed) for c in tuned}
        by, alphas = cell["table4_by"], cell["alphas"]
        assert cells == {(one, alpha, seed) for one in by for alpha in alphas for seed in setting.seeds[: FEWER[name]]}
        assert {c.embedding_dim for c in tuned} == {defined("03", name)["small"]}
        both = [
            next(c for c in configs if c == cell["methods"]["frozen", one, 1.0].replace(seed=c.seed)).penalty
            for one in ("logistic, all dimensions", "all dimensions, as hard")
        ]
        assert both[1]["alpha"] == both[0]["alpha"] * (cell["dim"] / 8) ** 0.5 and both[0]["cover"] == both[1]["cover"]
        searched = [
            c for c in configs if c.epochs not in (0, *(n * e for e in setting.epochs.values() for n in (1, 2)))
        ]
        assert not any(c.penalty for c in searched)  # what is penalised has the rate found without
        assert all(
            c.training in ("frozen", "finetuned") for c in configs if c.penalty
        )  # frozen ones over cached features

    @pytest.mark.parametrize("name", ["demo", "esc50"])
    def test_notebook_04_shares_its_plain_runs_with_the_notebooks_before(self, name):
        own = [c for c in grid("04", name) if not c.penalty]
        assert distinct(own) <= distinct(grid("01", name) + grid("03", name))

    def test_the_paper_grid_of_penalties_is_the_published_one(self):
        ours = {
            (c.batch_size, c.embedding_dim, c.penalty["alpha"] if c.penalty else 0)
            for c in grid("04", "paper")
            if c.training == "finetuned"
        }
        assert ours == {(32, 512, alpha) for alpha in (0, 0.1, 0.33, 1)}

    @pytest.mark.parametrize("number", ["01", "02", "03", "04", "05", "06"])
    def test_the_paper_recipe(self, number):
        for config in grid(number, "paper"):
            frozen = {"code": "frozen_released", "text": "frozen"}[config.recipe]
            assert config.embedding_dim == 1024 or number in ("03", "04")
            assert config.sampler == "all_captions" and config.max_seconds == 30
            assert config.audio_encoder == "resnet38" or number == "06" and config.audio_encoder == "cnn14_mei2022"
            assert config.text_encoder == "bert-base-uncased" and config.text_pooling == "first"
            assert config.training in (frozen, "finetuned") or number == "05" and config.training == "scratch"
            assert config.epochs in (0, 12, 50, 100, 150) and config.schedule == "step" and config.step_factor == 0.1
            assert config.step_epochs == {12: 5, 100: 40, 150: 60}.get(config.epochs, 20) and config.text_layers is None

    @pytest.mark.parametrize("name", PROFILES)
    def test_stages_by_method_and_their_controls(self, name):
        setting, configs, cell = get_profile(name), grid("05", name), defined("05", name)
        alone = setting.training == "frozen"  # heads train alone: a fixed side's head is fixed, too
        first_stage = [c for c in configs if c.stages and len(c.stages) == 1]
        assert [c.parts()[0].fixed_head for c in first_stage] == [not alone] * len(setting.seeds)
        staged = [part for c in configs if c.stages and len(c.stages) == 3 for part in c.parts()]
        assert all(part.fixed_head == (alone and part.fixed is not None) for part in staged)
        usual = setting.config(next(iter(setting.corpora)), setting.training, "nt_xent", 0).batch_size
        shapes = {
            "one stage": ([None], [None]),
            "three stages, random": (["text", "audio", None], ["random"] * 3),
            "three stages, mined": (["text", "audio", None], ["easy", "random", "hard"]),
            "one stage, hard": ([None], ["hard"]),
            "three restarts": ([None] * 3, ["random"] * 3),
            "hardest within the batch": (["text", "audio", None], ["easy", "random", "random"]),
        }
        for method, (fixed, mining) in shapes.items():
            config = cell["methods"]["pretrained", usual, method]
            parts = config.parts()
            assert ([part.fixed for part in parts], [part.mining for part in parts]) == (fixed, mining)
            epochs = list(cell["stage_epochs"]) if len(parts) == 3 else [config.epochs]
            assert [part.epochs for part in parts] == epochs
            wanted = [c for c in configs if c == config.replace(seed=c.seed)]
            few = FEWER[name] if method in ("three restarts", "hardest within the batch") else len(setting.seeds)
            assert {c.seed for c in wanted} == set(setting.seeds[:few])
            assert config.replace(seed=0) == config and ("hardest" in config.parts()[-1].loss) == (
                method[:7] == "hardest"
            )
        needed = [c.needs()["ancillary"] for c in configs if c.ancillary]
        assert all(c.training == setting.training and not c.stages for c in needed)
        assert distinct(needed) <= distinct(configs)

    def test_the_paper_grid_of_stages_is_the_published_one(self):
        published = pd.read_csv(places.PROJECT / "data" / "reference" / "chao2022_table3.csv")
        ours = {(c.training, c.batch_size) for c in grid("05", "paper") if c.stages}
        assert ours == {(how, size) for how in ("finetuned", "scratch") for size in published["batch_size"]}
        assert {c.corpus["name"] for c in grid("05", "paper")} == {"audiocaps"}

    @pytest.mark.parametrize("name", ["demo", "esc50"])
    def test_in_the_small_profiles_the_stages_have_as_many_epochs_as_one(self, name):
        setting = get_profile(name)
        assert sum(defined("05", name)["stage_epochs"]) == setting.epochs[setting.training]

    def test_a_try_in_stages_has_a_quarter_of_the_epochs_of_each(self):
        config = defined("05", "demo")["methods"]["pretrained", 32, "three stages, mined"]
        tried = rates.stretched(config, rates.SHARE)
        epochs = [[part.epochs for part in one.parts()] for one in (config, tried)]
        assert epochs == [[4, 4, 12], [1, 1, 3]]

    @pytest.mark.parametrize("name", PROFILES)
    def test_systems_by_encoder_transfer_and_corpus(self, name):
        setting, configs, cell = get_profile(name), grid("06", name), defined("06", name)
        usual = setting.rates[setting.training]["heads"], setting.epochs[setting.training]
        whole = [c for c in configs if (c.rate("heads"), c.epochs) == usual and c.corpus != setting.source]
        teams = {(c.audio_encoder, c.start is None, "hold_out" in c.corpus, c.seed) for c in whole if c.augment}
        systems = [*((encoder, True) for encoder in setting.cnns), (setting.cnns[0], False)]
        expected = {(*system, False, seed) for system in systems for seed in setting.seeds}
        expected |= {(*system, True, seed) for system in systems for seed in cell["submission_seeds"]}
        assert teams == expected
        assert {c.needs()["start"].corpus["name"] for c in configs if c.start} == {setting.source["name"]}
        assert len([c for c in whole if not c.augment]) == (FEWER[name] if setting.training == "finetuned" else 0)
        short = [c for c in configs if c.epochs < usual[1]]
        assert all(c.augment for c in short)  # the control takes its family's rate
        titles = [name for name in cell["methods"] if "," not in name]
        assert setting.published == (set(titles) == {"CNN14", "ResNet38"})

    def test_the_paper_grid_of_systems_trains_on_clotho_from_audiocaps(self):
        configs = grid("06", "paper")
        assert {c.corpus["name"] for c in configs} == {"clotho", "audiocaps"} and {c.batch_size for c in configs} == {
            32
        }
        assert {c.corpus.get("hold_out") for c in configs} == {None, 100}
        assert {c.needs()["start"].corpus["name"] for c in configs if c.start} == {"audiocaps"}

    @pytest.mark.parametrize("name", PROFILES)
    def test_the_grids_of_the_thesis_by_recipe_loss_rate_and_pooling(self, name):
        setting = get_profile(name)
        sigmoid, rates, pooling = ([c for c in grid(n, name) if c.training == "finetuned"] for n in ("07", "08", "09"))
        recipes, seeds = len(setting.thesis_recipes), len(setting.seeds)
        once = 2 * len(setting.tries) + (0 if setting.published else 1 if setting.quick else 2)
        once -= 2 * (setting.epochs["finetuned"] == 1)  # a quarter of one epoch is one
        assert len(distinct(sigmoid)) == 2 * recipes * seeds + once
        assert {c.rate("loss") for c in sigmoid if c.loss["name"] == "sigmoid"} == {0.1}
        tries, doubled = len(setting.tries), 0 if setting.published else 1 if setting.quick else 2
        usual = setting.thesis(0, "ATST")
        whole = usual.rate("audio") / usual.rate("heads")
        shares, slow = (
            {float(f"{c.rate('audio') / c.rate('heads') / whole:.2g}") for c in part} for part in (rates, pooling)
        )
        assert {1.0, 0.2} <= shares == set(defined("08", name)["shares"])
        searched = len(shares) * (tries - (setting.epochs["finetuned"] == 1)) + doubled
        assert len(distinct(rates)) == seeds * (len(shares) + 2 * (recipes - 1)) + searched
        assert slow == {0.2}
        ways = {(c.pooling, bool(c.text_aware)) for c in pooling}
        own = {("max_mean", False), ("max_mean", True)}
        mean = {("mean", False), ("max_mean", True)}
        assert ways == {"paper": own, "esc50": mean, "esc10": mean}.get(name, own | mean)
        shared = {c.to_dict()["select_by"] for c in [*sigmoid, *rates, *pooling]}
        assert shared == ({"last", "t2a_map10"} if setting.published else {"t2a_map10"})

    def test_the_paper_grids_of_the_thesis_train_on_clotho_alone(self):
        configs = [c for number in ("07", "08", "09") for c in grid(number, "paper")]
        assert {c.corpus["name"] for c in configs} == {"clotho"} and {c.text_encoder for c in configs} == {
            "roberta-large"
        }
        trained = [c for c in configs if c.training == "finetuned"]
        assert {c.audio_encoder for c in trained} == {"passt_s", "passt_s_stride16", "atst_frame"}
        assert {c.batch_size for c in trained} == {16} and {c.epochs for c in trained} == {5, 20}
        swept = {c.batch_size for c in configs if c.training == "frozen"}
        assert swept == {8, 16, 128}

    @pytest.mark.parametrize("name", PROFILES)
    def test_the_sigmoid_loss_meets_nt_xent_at_equal_steps_and_at_the_start_of_zhai_et_al(self, name):
        cell = defined("07", name)
        by_size = [config for (part, _), config in cell["methods"].items() if part.startswith("batch size")]
        assert len(by_size) == 2 * len(cell["batch_sizes"])
        steps = {config.epochs / config.batch_size for config in by_size}
        assert len(steps) == 1 or get_profile(name).quick  # of three epochs a half is two
        fixed = cell["temperatures"]["Sigmoid, fixed at 10 and -10"]
        loss = losses.build(**fixed.loss, variant=fixed.recipe)
        similarity = torch.tensor([[0.3, -0.2], [0.1, 0.9]])
        labels = torch.eye(2) * 2 - 1
        expected = -torch.nn.functional.logsigmoid(labels * (10 * similarity - 10)).sum() / 2
        ids = torch.arange(2)
        assert loss.from_similarity(similarity, ids, ids).item() == pytest.approx(expected.item(), rel=1e-5)
        assert fixed.rate("loss") == 0

    @pytest.mark.parametrize("name", ["demo", "esc50"])
    def test_the_small_recipe(self, name):
        for config in grid("01", name):
            assert config.embedding_dim == 256 and config.batch_size == 32 and config.sampler == "caption_per_clip"
            assert config.training in ("frozen", "finetuned")
            assert config.text_layers == 1

    @pytest.mark.parametrize("name", PROFILES)
    def test_exploring_trains_nothing_that_no_other_notebook_needs(self, name):
        explored = grid("00", name)
        assert [config.audio_encoder for config in explored] == list(get_profile(name).cnns)
        assert distinct(explored) <= distinct(grid("06", name))
        assert {config.seed for config in grid("00", name, [7, 8])} == {7}

    def test_a_notebook_without_a_grid_is_refused(self, tmp_path):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")]), tmp_path / "99.ipynb")
        with pytest.raises(StudyError, match="no cell tagged 'grid'"):
            study.grid(tmp_path / "99.ipynb", {})


def finish(config, results):
    """A finished run of `config` where the study looks for it."""
    folder = results / "smoke" / "runs"
    run = identity.locate(config, corpus_of(config.corpus), folder)
    made_run(folder, run.address, config, [1, 2], [1, 2])


class TestPlan:
    @pytest.fixture
    def results(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
        return tmp_path

    def test_every_distinct_run_once_with_its_notebooks(self, results):
        table = study.plan(FIRST[:2], "smoke")
        assert len(table) == len(distinct(grid("01", "smoke") + grid("02", "smoke")))
        shared = 4 * (len(get_profile("smoke").seeds) + len(get_profile("smoke").tries)) + 1
        assert (table["notebooks"] == "01 02").sum() == shared and set(table["notebooks"]) == {"01", "02", "01 02"}
        assert not table["finished"].any() and (table["seconds"] > 0).all()

    def test_what_is_finished_is_marked_and_costs_nothing_more(self, results, monkeypatch):
        monkeypatch.setattr(planning, "speed", lambda: 1.0)
        before = study.plan(FIRST[:1], "smoke")
        for config in before["config"]:
            finish(config, results)
        after = study.plan(FIRST[:1], "smoke")
        assert after["finished"].all()
        assert study.estimate(after, 2) == 0 < study.estimate(before, 2) < study.estimate(before, 1)

    def test_a_corpus_that_runs_have_used_needs_no_preparation(self, results, monkeypatch):
        monkeypatch.setattr(planning, "speed", lambda: 1.0)
        table = study.plan(FIRST[:1], "smoke")
        fresh = study.estimate(table, 1)
        finish(table["config"][0], results)
        begun = study.estimate(study.plan(FIRST[:1], "smoke"), 1)
        saved = table["seconds"][0] + planning.preparation(table["size"][0], 1)
        assert fresh - begun == pytest.approx(saved)

    def test_a_run_of_other_data_is_not_finished_and_planning_trains_nothing(self, results, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(results / "home"))
        (config,) = grid("01", "smoke")[:1]
        made_run(results / "smoke" / "runs", "0" * 16, config, [1, 2], [1, 2])  # same config, another address
        assert not study.plan(FIRST[:1], "smoke")["finished"].any()
        assert not (results / "home").exists()

    def test_seeds_are_counted(self, results):
        one, two, three = (len(study.plan(FIRST[:2], "demo", range(seeds))) for seeds in (1, 2, 3))
        assert three - two == two - one > 4 * 2

    @pytest.mark.parametrize(
        "seconds, words",
        [(3, "10 seconds"), (44, "40 seconds"), (89, "90 seconds"), (700, "12 minutes"), (12600, "3.5 hours")],
    )
    def test_durations_in_words(self, seconds, words):
        assert units.duration(seconds) == words


class TestExecute:
    @pytest.fixture(autouse=True)
    def results(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
        return tmp_path / "results"

    def notebook(self, folder, *cells, name="99_test"):
        made = [nbformat.v4.new_code_cell("profile_name, x = 'demo', 1", metadata={"tags": ["parameters"]})]
        notebook = nbformat.v4.new_notebook(cells=made + [nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    def test_parameters_are_passed_and_a_failure_keeps_the_last_good_copy(self, tmp_path, results):
        path = self.notebook(tmp_path, "print(profile_name, x)\nassert x > 0, 'x is too small'")
        done = study.execute(path, "smoke", {"x": 7})
        assert done == results / "smoke" / "notebooks" / "99_test.ipynb"
        assert "smoke 7" in done.read_text()
        good = done.read_bytes()
        with pytest.raises(
            StudyError, match=r"99_test\.ipynb: AssertionError: x is too small\nexecuted so far: .*failed"
        ):
            study.execute(path, "smoke", {"x": -1})
        assert done.read_bytes() == good and done.with_name("99_test.failed.ipynb").is_file()

    def test_notebooks_run_side_by_side_and_a_failure_is_told_after_those_under_way(self, tmp_path, results):
        met = "import pathlib, time\nhere = pathlib.Path({!r})\n(here / f'{}').touch()\n"
        wait = "while not (here / '{}').exists():\n    time.sleep(0.1)"  # each waits for the other
        paths = [
            self.notebook(tmp_path, met.format(str(tmp_path), one) + wait.format(other), last, name=f"9{one}_test")
            for one, other, last in ((1, 2, "1 / 0"), (2, 1, "print('done')"))
        ]
        with pytest.raises(StudyError, match="91_test.ipynb: ZeroDivisionError"):
            study.execute_all(paths, "smoke", {"x": 1}, jobs=2)
        assert "done" in (results / "smoke" / "notebooks" / "92_test.ipynb").read_text()

    def test_notebooks_side_by_side_share_the_cores(self, tmp_path, results, monkeypatch):
        for library in study.THREADED:
            monkeypatch.delenv(f"{library}_NUM_THREADS", raising=False)
        monkeypatch.setattr(executors, "default_workers", lambda device: 6)
        found = "import os\nprint('threads', os.environ['OMP_NUM_THREADS'], os.environ['NUMBA_NUM_THREADS'])"
        paths = [self.notebook(tmp_path, found, name=name) for name in ("91_test", "92_test")]
        study.execute_all(paths, "smoke", {"x": 1}, jobs=2)
        for path in paths:
            assert "threads 3 3" in (results / "smoke" / "notebooks" / path.name).read_text()
        assert os.environ.get("OMP_NUM_THREADS") is None

    def test_the_kernel_is_this_interpreter_with_this_package_whatever_kernels_are_installed(
        self, tmp_path, results, monkeypatch
    ):
        # Given a kernel of the notebook's name that comes first, and another package of this one's name
        kernel = tmp_path / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        spec = {"argv": ["false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        (tmp_path / "other" / "atr").mkdir(parents=True)
        (tmp_path / "other" / "atr" / "__init__.py").touch()
        for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
            monkeypatch.setenv(name, str(tmp_path / "jupyter"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
        # When it is run, then neither is used
        path = self.notebook(tmp_path, "import os, sys, atr\nprint(sys.executable, atr.__file__)")
        done = study.execute(path, "smoke", {"x": 1})
        assert f"{sys.executable} {places.PROJECT / 'atr' / '__init__.py'}" in done.read_text()

    def test_a_notebook_knows_its_code(self, tmp_path, results):
        path = self.notebook(tmp_path, "import os\nprint('code', os.environ['ATR_NOTEBOOK'])")
        done = study.execute(path, "smoke", {"x": 1})
        codes = {study.code(nbformat.read(one, as_version=4)) for one in (path, done)}
        assert len(codes) == 1 and f"code {codes.pop()}" in done.read_text()

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_kernels_end_with_a_study_that_is_killed(self, tmp_path, results, jobs):
        told = tmp_path / "kernels"
        told.mkdir()
        cell = f"import os, pathlib, time\npathlib.Path({str(told)!r}, str(os.getpid())).touch()\ntime.sleep(300)"
        paths = [str(self.notebook(tmp_path, cell, name=f"9{number}_test")) for number in range(jobs)]
        script = tmp_path / "script.py"
        script.write_text(
            "from pathlib import Path\nfrom atr.experiments import study\nif __name__ == '__main__':\n"
            f"    study.execute_all(list(map(Path, {paths})), 'smoke', {{}}, {jobs})\n"
        )
        environment = os.environ | {"PYTHONPATH": str(places.PROJECT)}
        process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: len(list(told.iterdir())) == jobs)
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: not any(alive(int(path.name)) for path in told.iterdir()), 20)

    def test_the_notebook_that_measures_the_machine_runs_last_and_alone(self, monkeypatch):
        pools = []
        monkeypatch.setattr(
            study, "_execute", lambda pool, jobs, paths, *rest: pools.append((jobs, [path.stem[:2] for path in paths]))
        )
        paths = study.notebooks(["12", "01", "02"])
        study.execute_all(paths, "smoke", {}, jobs=2)
        assert pools == [(2, ["01", "02"]), (1, ["12"])]
        pools.clear()
        study.execute_all(paths, "smoke", {}, jobs=1)
        assert pools == [(1, ["01", "02", "12"])]

    def test_after_a_failure_no_further_notebook_is_begun_and_what_is_done_is_said(self, tmp_path, monkeypatch):
        begun, said = [], []

        def execute(path, *_):
            begun.append(path)
            if path == "b":
                raise StudyError("b fails")
            return path

        monkeypatch.setattr(study, "execute", execute)
        with ThreadPoolExecutor(1) as pool, pytest.raises(StudyError, match="b fails"):
            study._execute(pool, 1, ["a", "b", "c"], "smoke", {}, said.append, None)
        assert begun == ["a", "b"] and said == ["a"]

    def test_reference_copies_what_was_made_and_nothing_else(self, results):
        with pytest.raises(StudyError, match="not run yet: 00_explore.ipynb.*atr study --profile smoke"):
            study.commit_reference("smoke")
        source = results / "smoke"
        for part in ("tables", "figures", "notebooks", "runs"):
            (source / part).mkdir(parents=True)
            (source / part / f"{part}.txt").write_text(part)
        for path in PATHS:
            shutil.copy(path, source / "notebooks")
        (source / "notebooks" / "01_loss_comparison.failed.ipynb").write_text("{}")
        target = results / "reference" / "smoke"
        (target / "tables").mkdir(parents=True)
        (target / "tables" / "old.csv").write_text("old")
        assert study.commit_reference("smoke") == target
        assert sorted(path.name for path in target.iterdir()) == ["figures", "notebooks", "ranks", "tables"]
        assert sorted(path.name for path in (target / "tables").iterdir()) == ["tables.txt"]
        assert not list(target.rglob("*.failed.ipynb")) and (target / "notebooks" / PATHS[0].name).is_file()

    def test_reference_of_some_notebooks_leaves_the_others_as_they_are(self, results):
        source, target = results / "smoke", results / "reference" / "smoke"
        for folder, number, word in (
            (source, "01", "new"),
            (source, "02", "new"),
            (target, "01", "old"),
            (target, "02", "old"),
        ):
            for part in ("tables", "figures", "notebooks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / f"{number}_x").write_text(word)
        with pytest.raises(StudyError, match="not run yet: 02_batch_size.ipynb"):
            study.commit_reference("smoke", ["2"])
        shutil.copy(PATHS[2], source / "notebooks")
        study.commit_reference("smoke", ["2"])
        found = {path.name: path.read_text() for path in (target / "tables").iterdir()}
        assert found == {"01_x": "old", "02_x": "new"} and (target / "notebooks" / PATHS[2].name).is_file()


class TestProgress:
    @pytest.fixture
    def file(self, tmp_path, monkeypatch):
        monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "progress"))
        return tmp_path / "progress"

    def test_it_says_what_is_done_what_trains_and_how_long_it_takes(self, file):
        # Given two runs still to be made, of 60 and 120 s by a guess that is twice too high, and one notebook of 20 s
        state = progress.Progress(file, {"a": 30.0, "b": 60.0}, finished="xyz", guess=180.0, began=100.0)
        assert not state.read() and (state.done, state.total) == (3, 5)
        assert state.left(100.0) == 200 and state.left(160.0) == 140
        # When the first is prepared, and trains beside another
        progress.note("opened", "01_loss_comparison")
        progress.note("prepared", "nt_xent frozen")
        assert state.read() and str(state).endswith("left; preparing nt_xent frozen")
        progress.note("trains", "nt_xent frozen", "a")
        progress.note("trains", "sigmoid", "x")
        assert state.read() and str(state).endswith("left; training nt_xent frozen and 1 other") and not state.read()
        # And ends, then its pace counts for as much as the work that it was, beside the guess
        for own in ("x", "a", "a"):
            progress.note("ended", "", own)
        state.read()
        state._last = 130.0
        assert state.done == 4 and str(state).endswith("; 01_loss_comparison")
        pace = (0.2 * 180 + 30) / (0.2 * 90 + 30)
        assert state.left(140.0) == pytest.approx(pace * 60 - 10 + 20)
        progress.note("ended", "", "b")
        progress.note("closed", "01_loss_comparison")
        state.read()
        assert state.left(500.0) == 0 and str(state).startswith("5 of 5 runs, about 10 seconds left")

    def test_runs_that_a_search_trains_instead_of_planned_ones_count(self, file):
        state = progress.Progress(
            file, {"a": 10.0, "b": 30.0, "c": 20.0}, finished="f", guess=None, notebooks=0, began=0
        )
        for own in ("new", "f", "new"):  # one of no plan, and one that was finished before
            progress.note("trains", "", own)
            progress.note("ended", "", own)
        state.read()
        state._last = 20.0
        assert (state.done, state.total) == (2, 4) and state.left(20.0) == pytest.approx(40)
        progress.note("ended", "", "at hand")  # takes no time, and leaves less to do
        state.read()
        state._last = 20.0
        assert state.done == 3 and state.left(20.0) == pytest.approx(20)
        for own in ("further", "another"):  # the search goes on beyond the plan
            progress.note("trains", "", own)
            progress.note("ended", "", own)
        state.read()
        assert (state.done, state.total) == (5, 5) and state.left() == 0

    def test_without_a_guess_the_first_run_tells(self, file):
        state = progress.Progress(file, {"a": 1.0, "b": 3.0}, guess=None, notebooks=0, began=0.0)
        assert state.left(50.0) is None and str(state) == "0 of 2 runs"
        progress.note("ended", "", "a")
        state.read()
        state._last = 10.0
        assert state.left(10.0) == 30

    def test_half_a_line_is_read_when_it_is_whole(self, file):
        state = progress.Progress(file, {"a": 1.0})
        file.write_text('["ended", "é", "a"]\n["ended", "", ')
        assert state.read() and state.done == 1
        with file.open("a") as lines:
            lines.write('"b"]\n')
        assert state.read() and not state.read()

    def test_nothing_is_noted_where_nobody_reads_and_a_full_disk_is_no_failure(self, tmp_path, monkeypatch):
        monkeypatch.delenv(progress.VARIABLE, raising=False)
        progress.note("trains", "", "a")
        monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "gone" / "progress"))
        progress.note("trains", "", "a")
        assert not list(tmp_path.iterdir())

    def test_runs_note_what_they_do(self, file, corpus, tmp_path):
        config = RunConfig(corpus=TINY, epochs=1, batch_size=16, embedding_dim=16)
        for _ in range(2):  # the second time it is at hand
            run_all([config], runs=tmp_path / "runs", quiet=True).raise_failures()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [event for event, *_ in lines] == ["prepared", "prepared", "trains", "ended", "prepared", "ended"]
        assert {what for _, what, _ in lines} == {describe(config)} and lines[2][2] == lines[3][2] == key(config)

    def test_a_line_every_minute_where_there_is_no_terminal(self, file, monkeypatch, capsys):
        monkeypatch.setattr(commands, "PAUSE", 0.0)
        state = progress.Progress(file, {"a": 1.0})
        watch, quiet = commands._lines(state, False), commands._lines(state, True)
        watch()
        progress.note("trains", "nt_xent", "a")
        watch()
        watch()
        quiet()
        assert capsys.readouterr().err.count("0 of 1 runs; training nt_xent\n") == 1


class TestProfiles:
    def test_an_unknown_profile_is_refused_with_the_known_ones(self):
        with pytest.raises(ValueError, match="profile: unknown 'big'; known: smoke, demo, esc50, paper, esc10"):
            get_profile("big")

    def test_a_folder_of_clips_is_asked_for_where_it_is_needed(self, monkeypatch, tmp_path):
        with pytest.raises(ValueError, match="make study PROFILE=esc10 CLIPS=<folder>, or set ATR_CLIPS"):
            _ = get_profile("esc10").root
        monkeypatch.setenv("ATR_CLIPS", str(tmp_path))
        assert get_profile("esc10").root == tmp_path and get_profile("demo").root is None

    def test_from_scratch_everything_is_trained_at_the_rates_of_fine_tuning(self):
        setting = get_profile("demo")
        tuned, scratch = (setting.config("soundscapes", how, "nt_xent", 0) for how in ("finetuned", "scratch"))
        assert scratch == tuned.replace(training="scratch")

    def test_the_corpus_is_shown_by_the_profiles_name(self):
        paper = get_profile("paper")
        config = paper.config("Clotho", "frozen", "nt_xent", 0)
        assert paper.name_of(config) == "Clotho" and get_profile("demo").name_of(config) == "clotho"


class TestChecks:
    def test_a_folder_of_clips_is_checked_before_a_notebook_starts(self, monkeypatch, tmp_path, terminal):
        (tmp_path / "dog").mkdir()
        (tmp_path / "dog" / "1-лай.wav").write_text("no audio")
        monkeypatch.setenv("ATR_CLIPS", "")
        monkeypatch.setattr(study, "execute_all", lambda *_: pytest.fail("a notebook started"))
        terminal(250)
        outcome = CliRunner().invoke(app.app, ["study", "01", "--profile", "esc10", "--clips", str(tmp_path)])
        assert outcome.exit_code == 1 and "1-лай.wav: unreadable" in outcome.output
        assert "Traceback" not in outcome.output
