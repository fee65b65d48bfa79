import json
import pickle
import re

import pytest
import soundfile
import torch

import atr
from atr import encoders, losses, register
from atr.experiments import grid
from atr.inference.embedder import beginning
from atr.system import places
from atr.training import identity

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
PAGE = places.PROJECT / "docs" / "extending.md"
CALL, LOSS, ENCODER, CORPUS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
NUMBER = """
from atr import losses, register

@register.loss("number")
class Number(losses.PairLoss):
    def __init__(self, number: float = 1.0) -> None:
        super().__init__("mask")
        self.number = number

    def compute(self, similarity, same):
        return self.number * similarity.mean() * {factor}
"""


def file(folder, *parts, name="own.py"):
    (folder / name).write_text("\n\n".join(parts))
    return folder / name


def config(**changes):
    settings = {"corpus": TINY, "training": "scratch", "audio_weights": None, "epochs": 1, "batch_size": 16}
    return atr.RunConfig(**settings | {"embedding_dim": 16} | changes)


def test_each_example_has_less_than_thirty_lines():
    assert all(len(part.strip().splitlines()) < 30 for part in (LOSS, ENCODER, CORPUS))


def test_the_first_lines_of_the_page_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(file(tmp_path, LOSS).parent)
    space = {}
    exec(CALL, space)
    assert space["config"].loss == {"name": "soft_margin", "scale": 10.0}


def test_the_pages_loss_is_what_its_docstring_says(tmp_path):
    atr.extend(file(tmp_path, LOSS))
    loss = losses.build("soft_margin", variant="code", scale=2.0)
    similarity, ids = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.9, 0.4], [0.0, 0.6, 0.7]]), torch.tensor([0, 1, 1])
    off = {(0, 1), (0, 2), (1, 0), (2, 0)}  # clips 1 and 2 are the same one

    def soft(x):
        return torch.log(1 + torch.exp(torch.tensor(2.0 * x)))

    by_audio = sum(soft(float(similarity[i, j] - similarity[i, i])) for i, j in off) / 4
    by_text = sum(soft(float(similarity[i, j] - similarity[j, j])) for i, j in off) / 4
    torch.testing.assert_close(loss.from_similarity(similarity, ids, ids), by_audio + by_text)
    with pytest.raises(ValueError, match="no parameter 'margin'; known: 'scale', 'same_clip', 'mask_same_clip'"):
        losses.build("soft_margin", margin=1)


def test_the_pages_encoder_hears_a_clip_alike_in_any_company(tmp_path):
    atr.extend(file(tmp_path, ENCODER))
    encoder = encoders.build("gru").eval()
    waves = torch.rand(2, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    waves[1, 9_000:] = 0
    frames, mask = encoder(waves, torch.tensor([16_000, 9_000]))
    assert frames.shape == (2, 26, 128) and mask.sum(1).tolist() == [26, 15]
    alone = encoder.pool(*encoder(waves[1:, :9_000]))
    torch.testing.assert_close(encoder.pool(frames, mask)[1:], alone, atol=1e-5, rtol=1e-5)


def test_runs_with_a_loss_and_an_encoder_of_ones_own_train_in_processes_of_their_own(tmp_path):
    atr.extend(file(tmp_path, LOSS, ENCODER))
    settings = config(loss={"name": "soft_margin"}, audio_encoder="gru", augment=None)
    done = grid.run_all([settings], runs=tmp_path / "runs", workers=1, device="cpu", quiet=True)
    done.raise_failures()
    (run,) = done.runs
    assert set(run.environment["weights"]) >= {"loss soft_margin", "encoder gru"}
    other = atr.fit(settings, runs=tmp_path / "others", device="cpu")
    assert run.address == other.address and run.metrics == other.metrics


def test_the_pages_corpus_is_loaded_checked_and_trained_on(corpus, tmp_path):
    atr.extend(file(tmp_path, CORPUS))
    entries = []
    for split in ("train", "validation", "test"):
        part = corpus.split(split)
        for clip in part.clips["clip"][:4]:
            soundfile.write(tmp_path / f"{clip}.wav", *corpus.read(clip))
            captions = part.captions.loc[part.captions["clip"] == clip, "caption"].tolist()
            entries.append({"file": f"{clip}.wav", "split": split, "captions": captions})
    (tmp_path / "recordings.json").write_text(json.dumps(entries))
    loaded = atr.load_corpus("recordings", tmp_path)
    assert len(loaded) == 12 and len(loaded.captions) == sum(len(entry["captions"]) for entry in entries)
    with pytest.raises(ValueError, match="'recordings' lies in a folder: give root=<folder>"):
        atr.load_corpus("recordings")
    with pytest.raises(ValueError, match="unknown option.* size; known: table, hold_out"):
        atr.load_corpus("recordings", tmp_path, size=3)
    settings = config(corpus="recordings", batch_size=4)
    done = grid.run_all([settings], root=tmp_path, runs=tmp_path / "runs", workers=1, device="cpu", quiet=True)
    done.raise_failures()
    assert done.runs[0].metrics["t2a_mean_rank"] <= 4


def test_the_code_is_part_of_the_address_and_the_old_run_is_found_again(corpus, tmp_path):
    def address(factor):
        atr.extend(file(tmp_path, NUMBER.format(factor=factor)))
        return identity.locate(config(loss={"name": "number"}), corpus, tmp_path / "runs").address

    assert address(1) != address(2) and address(1) == address(1)
    assert losses.build("number", number=3.0).from_similarity(
        torch.ones(2, 2), torch.arange(2), torch.arange(2)
    ) == pytest.approx(3)
    plain = identity.locate(config(), corpus, tmp_path / "runs").address
    register.forget(next(iter(register._files)))
    assert identity.locate(config(), corpus, tmp_path / "runs").address == plain


def test_a_run_whose_code_has_changed_is_not_used_in_silence(corpus, tmp_path):
    atr.extend(file(tmp_path, NUMBER.format(factor=1)))
    run = atr.fit(config(loss={"name": "number"}), corpus, runs=tmp_path / "runs", device="cpu")
    beginning(run, corpus)
    atr.extend(file(tmp_path, NUMBER.format(factor=2)))
    with pytest.raises(ValueError, match="trained from another code of loss number than is here; restore"):
        beginning(run, corpus)


def test_what_a_changed_file_no_longer_registers_is_gone_and_a_broken_file_leaves_nothing(tmp_path):
    atr.extend(file(tmp_path, LOSS))
    atr.extend(file(tmp_path, NUMBER.format(factor=1)))
    with pytest.raises(
        ValueError, match=r"no loss 'soft_margin'; known: .*'number'; one of your own: first atr\.extend"
    ):
        losses.build("soft_margin")
    with pytest.raises(ZeroDivisionError):
        atr.extend(file(tmp_path, NUMBER.format(factor=1), "1 / 0"))
    assert "number" not in losses.LOSSES and not register._files


def test_a_name_that_is_taken_is_refused_and_so_is_registering_outside_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="own.py: loss 'nt_xent' is taken, by atr; choose another name"):
        atr.extend(file(tmp_path, NUMBER.format(factor=1).replace('"number"', '"nt_xent"')))
    assert losses.LOSSES["nt_xent"] is losses.NTXent
    first = file(tmp_path, NUMBER.format(factor=1))
    atr.extend(first)
    with pytest.raises(ValueError, match=f"two.py: loss 'number' is taken, by {re.escape(str(first))}"):
        atr.extend(file(tmp_path, NUMBER.format(factor=1), name="two.py"))
    with pytest.raises(ValueError, match=r"encoder 'x': register it in a file of its own and call atr\.extend"):
        register.encoder("x")(object)
    with pytest.raises(FileNotFoundError, match="none.py: no such file; give a Python file that registers"):
        atr.extend(tmp_path / "none.py")


def test_what_is_sent_to_workers_brings_the_files_along(tmp_path):
    atr.extend(file(tmp_path, NUMBER.format(factor=1)))
    sent = pickle.dumps((register.Extensions(), losses.LOSSES["number"]))
    register.forget(next(iter(register._files)))
    _, found = pickle.loads(sent)
    assert losses.LOSSES["number"] is found


def test_the_command_line_takes_extensions_from_the_environment(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from atr.cli.app import app

    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    path = file(tmp_path, NUMBER.format(factor=1))
    atr.extend(path)
    atr.fit(config(loss={"name": "number"}), runs=atr.get_profile("smoke").runs, device="cpu")
    register.forget(path)
    ask = ["runs", "export", str(tmp_path / "runs.csv"), "--profile", "smoke"]
    shown = CliRunner().invoke(app, ask)
    assert "one of your own: first atr.extend" in shown.output and shown.exit_code == 1
    shown = CliRunner().invoke(app, ask, env={"ATR_EXTENSIONS": str(path)})
    assert "1 runs → " in shown.output and shown.exit_code == 0
    shown = CliRunner().invoke(app, ["runs", "list"], env={"COLUMNS": "300", "ATR_EXTENSIONS": "none.py"})
    assert shown.exit_code == 1 and "none.py:nosuchfile" in re.sub(r"\s", "", shown.output)
