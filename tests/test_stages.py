"""Training in stages: what is fixed stays, each stage starts from the best before it, a killed run goes on."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from atr import RunConfig, fit
from atr.config import ConfigError
from atr.corpora import corpus_of
from atr.experiments import grid
from atr.system import devices
from atr.training import evaluation, identity, model, preparation
from atr.training import fit as fitting
from atr.training.batches import HOW, ancillary, epoch_batches
from atr.training.records import Run

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
BASE = {"corpus": TINY, "epochs": 1, "batch_size": 20, "embedding_dim": 16}


def config(**changes):
    return RunConfig(**(BASE | changes))


BASELINE = config(training="finetuned")
CURRICULUM = config(
    training="finetuned",
    ancillary=BASELINE.identity(),
    stages=[
        {"fixed": "text", "mining": "easy"},
        {"fixed": "audio", "mining": "random"},
        {"mining": "hard", "epochs": 2},
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def curriculum(corpus, folder):
    return fit(CURRICULUM, corpus, runs=folder)


def weights(run):
    return load_file(run.path / "checkpoint.safetensors")


def changed(run, other):
    """Parts of the network whose parameters or statistics differ."""
    mine, theirs = weights(run), weights(other)
    return {name.split(".")[0] for name in mine if not torch.equal(mine[name], theirs[name])}


class TestStages:
    def test_a_run_has_its_stages_in_one_folder(self, curriculum):
        assert curriculum.history["stage"].tolist() == [1, 2, 3, 3]
        assert curriculum.history["epoch"].tolist() == [1, 2, 3, 4]
        assert len(curriculum.stages) == 3
        assert curriculum.stages[-1]["test"] == curriculum.metrics
        assert curriculum.stages[0]["best_epoch"] == 1 and curriculum.best_epoch in (3, 4)
        assert not (curriculum.path / "state.pt").exists()

    def test_a_run_of_one_stage_has_none_of_it(self, corpus, folder):
        run = fit(config(), corpus, runs=folder)
        assert run.stages == [] and "stage" not in run.history

    @pytest.mark.parametrize(
        ("fixed", "head", "moved"),
        [
            ("text", False, {"audio_encoder", "audio_head", "text_head"}),
            ("text", True, {"audio_encoder", "audio_head"}),
            ("audio", False, {"text_encoder", "audio_head", "text_head"}),
            ("audio", True, {"text_encoder", "text_head"}),
        ],
    )
    def test_what_is_fixed_stays_as_it_was(self, corpus, tmp_path, fixed, head, moved):
        start = fit(config(training="finetuned", epochs=0), corpus, runs=tmp_path)
        kind = config(training="finetuned", fixed=fixed, fixed_head=head, start=start.config.identity())
        assert changed(fit(kind, corpus, runs=tmp_path), start) == moved

    def test_a_fixed_encoder_gives_what_it_gives_in_evaluation(self, corpus, tmp_path):
        kind = config(training="finetuned", learning_rates={"heads": 0.0}, stages=[{"fixed": "audio"}, {}])
        fixed, free = fit(kind, corpus, runs=tmp_path).stages
        plain = fit(config(training="finetuned", epochs=0), corpus, runs=tmp_path)
        assert fixed["test"] == plain.metrics  # nothing has moved
        assert free["test"].keys() == fixed["test"].keys()

    def test_a_text_encoder_that_nothing_has_changed_is_read_from_the_store(self, corpus, tmp_path, monkeypatch):
        """What the store holds is what the network would say: a run that starts from the same weights, by way of
        another run, asks its network.
        """
        kind = config(training="finetuned", text_dropout=0.2, fixed="text", epochs=2)
        untrained = config(training="finetuned", text_dropout=0.2, epochs=0)
        asked = fit(kind.replace(start=untrained.identity()), corpus, runs=tmp_path)
        monkeypatch.setattr(evaluation, "precompute_side", None)  # nothing to compute
        stored = fit(kind, corpus, runs=tmp_path)
        assert stored.history["loss"].tolist() == pytest.approx(asked.history["loss"].tolist(), abs=1e-4)
        assert torch.allclose(stored.embeddings["audio"], asked.embeddings["audio"], atol=1e-3)

    def test_each_stage_starts_from_the_best_epoch_of_the_one_before(self, corpus, tmp_path):
        """With a rate of 0 in the second stage, its numbers are those of the first one's best epoch."""
        kind = config(
            epochs=6,
            learning_rates={"heads": 0.03},
            stages=[{}, {"epochs": 1, "learning_rates": {"heads": 0.0}}],
        )
        first, second = fit(kind, corpus, runs=tmp_path).stages
        assert first["test"] == second["test"] and second["best_epoch"] == 7

    def test_a_stage_has_its_schedule_and_loss(self, corpus, tmp_path):
        kind = config(
            epochs=2,
            step_epochs=1,
            stages=[{}, {"loss": {"name": "nt_xent", "hardest": 3}, "learning_rates": {"heads": 1e-4}}],
        )
        history = fit(kind, corpus, runs=tmp_path).history
        assert history["learning_rate"].tolist() == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])

    @pytest.mark.parametrize("epochs", [1, 2, 3])
    def test_killed_after_an_epoch_of_any_stage_it_continues_bit_by_bit(
        self, corpus, folder, tmp_path, curriculum, epochs
    ):
        context = devices.worker_context()
        process = context.Process(target=_die_after, args=(corpus, tmp_path, epochs))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        again = fit(CURRICULUM, corpus, runs=tmp_path)
        for name in ("history.csv", "metrics.json", "embeddings.safetensors", "checkpoint.safetensors"):
            assert (again.path / name).read_bytes() == (curriculum.path / name).read_bytes(), name


def _die_after(corpus, folder, epochs):
    write = Run.write_history

    def history(run, now):
        write(run, now)
        rows = now.history
        if "stage" in rows[-1] and len(rows) == epochs:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.write_history = history
    fit(CURRICULUM, corpus, runs=folder)


class TestNeeds:
    def test_the_run_that_is_mined_by_is_made_and_names_the_address(self, corpus, folder, curriculum):
        baseline = identity.locate(BASELINE, corpus, folder)
        assert baseline.finished
        other = BASELINE.replace(seed=1)
        elsewhere = identity.locate(CURRICULUM.replace(ancillary=other.identity()), corpus, folder)
        assert elsewhere.address != curriculum.address
        in_full = CURRICULUM.replace(ancillary=BASELINE.to_dict())
        assert identity.locate(in_full, corpus, folder).address == curriculum.address

    def test_ancillary_embeddings_are_those_of_the_selected_epoch(self, corpus, folder, curriculum):
        baseline = identity.locate(BASELINE, corpus, folder)
        pairs = fitting.ancillary(baseline, corpus)
        assert pairs.shape == (48 * 5, 16)
        assert torch.allclose(pairs.norm(dim=1), torch.ones(240), atol=1e-5)
        # The first pair, by hand from the checkpoint.
        prepared = preparation.prepare(BASELINE, corpus, ("train",), quiet=True)
        network = model.load(model.build(BASELINE, prepared), baseline).eval()
        split = prepared.splits["train"]
        with torch.no_grad():
            audio, text = network(split.audio.batch(np.array([0])), split.text.batch(np.array([0])))
        assert torch.allclose(pairs[0], ancillary(audio, text)[0], atol=1e-5)

    def test_a_run_can_start_from_one_on_another_corpus(self, corpus, tmp_path):
        source = config(training="finetuned", corpus=TINY | {"seed": 7})
        kind = config(training="finetuned", start=source.identity(), learning_rates={"heads": 0.0}, fixed="audio")
        run = fit(kind, corpus, runs=tmp_path)
        made = identity.locate(source, corpus_of(source.corpus), tmp_path)
        assert made.finished and changed(run, made) == set()

    def test_other_networks_cannot_be_started_from(self, corpus, tmp_path):
        source = config(training="frozen")
        kind = config(training="finetuned", start=source.identity())
        with pytest.raises(ValueError, match="holds other tensors than the config builds"):
            fit(kind, corpus, runs=tmp_path)

    def test_a_needed_run_is_finished_before_the_one_that_needs_it(self, tmp_path):
        baseline = config(seed=3)
        by = {"ancillary": baseline.identity(), "mining": "hard"}
        mined = [config(seed=3, batch_size=size, **by) for size in (8, 16)]
        order = []
        outcome = grid.run_all(
            [*mined, baseline], runs=tmp_path, workers=2, quiet=True, on_run=lambda config, run: order.append(config)
        )
        outcome.raise_failures()
        assert order[0] == baseline and len(order) == 3


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mining": "hard"}, "mining: needs ancillary"),
            ({"mining": "median"}, "mining: unknown 'median'"),
            ({"ancillary": {"corpus": TINY}}, "ancillary: nothing is mined by it"),
            ({"ancillary": {"corpus": "clotho"}, "mining": "easy"}, "ancillary: its corpus is"),
            ({"ancillary": {"colour": "red"}, "mining": "easy"}, "ancillary: unknown field colour"),
            ({"start": BASE | {"embedding_dim": 8}}, "start: its embedding_dim is 8, here 16"),
            ({"fixed_head": True}, "fixed_head: no encoder is fixed"),
            ({"fixed": "video"}, "fixed: unknown 'video'"),
            ({"stages": []}, "stages: .* is not a list of one stage or more"),
            ({"stages": [{"seed": 3}]}, "stages: 1: unknown seed"),
            ({"stages": [{}, {"epochs": 0}]}, "stages: 2: epochs: 0"),
            ({"stages": [{}, {"mining": "easy"}]}, "stages: 2: mining: needs ancillary"),
            ({"stages": [{"learning_rates": {"text": 1.0}}]}, "stages: 1: learning_rates: no heads"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_words(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            config(**changes)

    def test_it_survives_json_and_a_new_field_renames_no_run(self):
        assert RunConfig(**json.loads(json.dumps(CURRICULUM.to_dict()))).to_dict() == CURRICULUM.to_dict()
        assert not {"mining", "ancillary", "start", "fixed", "fixed_head", "stages"} & set(config().identity())

    def test_the_epochs_of_all_stages_are_visited(self):
        assert [part.epochs for part in CURRICULUM.parts()] == [1, 1, 2]
        assert CURRICULUM.parts()[1].ancillary is None and CURRICULUM.parts()[2].mining == "hard"


class TestBatches:
    CLIPS = np.repeat(np.arange(40), 5)

    @pytest.mark.parametrize("how", HOW)
    @pytest.mark.parametrize(("sampler", "visits"), [("caption_per_clip", 40), ("all_captions", 200)])
    def test_every_pair_of_the_epoch_once_and_no_clip_twice_in_a_batch(self, how, sampler, visits):
        rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
        batches = epoch_batches(self.CLIPS, 16, sampler, 3, 1, mining=how, embeddings=rows)
        visited = np.concatenate(batches)
        assert len(visited) == visits == len(set(visited.tolist()))
        assert all(len(set(self.CLIPS[batch])) == len(batch) for batch in batches)
        assert max(len(batch) for batch in batches) == 16
        if sampler == "caption_per_clip":  # else the last pairs may all be of clips that a batch holds already
            assert sorted(len(batch) for batch in batches) == [8, 16, 16]

    def test_a_new_epoch_is_mined_anew_and_the_same_one_alike(self):
        rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))

        def drawn(epoch):
            return [b.tolist() for b in epoch_batches(self.CLIPS, 16, "all_captions", 3, epoch, True, "hard", rows)]

        assert drawn(1) == drawn(1) != drawn(2)

    def test_mining_without_embeddings_is_refused(self):
        with pytest.raises(ValueError, match="needs the embeddings"):
            epoch_batches(self.CLIPS, 16, "all_captions", 0, 0, mining="easy")


def test_a_run_is_described_by_its_stages_mining_and_source():
    words = grid.describe(CURRICULUM)
    assert "nt_xent finetuned in 3 stages D16 B20" in words
    mined = config(mining="hard", ancillary=BASELINE.identity(), start=config(corpus="clotho").identity())
    assert " hard batches " in grid.describe(mined) and grid.describe(mined).endswith("on soundscapes from clotho")
    unspoken = RunConfig(corpus="clotho", start=RunConfig(seed=1).identity())
    assert grid.describe(unspoken).endswith("on clotho from soundscapes")
