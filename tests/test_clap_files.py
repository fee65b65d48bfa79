"""CLAP from the files of its authors: vectors of the released code (laion-clap 1.1.7, msclap 1.3.4) over weights
filled by name."""

import json
import shutil
from contextlib import contextmanager
from functools import cache

import dataset_layouts
import golden_weights
import made_models
import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import RobertaConfig
from typer.testing import CliRunner

from atr import Embedder
from atr.cli import app
from atr.corpora.audio import to_int16
from atr.encoders import clap, clap_files
from atr.inference import search
from atr.system.packed import RaggedArray
from atr.system.places import home

LAION = ("laion_htsat_tiny", "laion_htsat_base", "laion_htsat_fused", "laion_pann14", "laion_pann14_fused")
# All but the first of fewer and narrower layers.


def state(name, **frontend):
    """What the released code's state dict holds, its frontend's mel bands and the places in a window of HTSAT too."""
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    known = {
        "melW": golden_weights.transform(**frontend)["logmel_extractor.melW"],
        "relative_position_index": (row[:, None] - row + 7) * 15 + column[:, None] - column + 7,
    }
    filled = golden_weights.fill(golden_weights.keys(name))
    return {name: known.get(name.rpartition(".")[2], tensor) for name, tensor in filled.items()}


@cache
def laion(name):
    return state(name, rate=48_000)


@cache
def microsoft(year):
    """Of 2022 as of 2023 of fewer and narrower layers than theirs."""
    return state(f"msclap_{year}", rate={2022: 44_100, 2023: 32_000}[year])


@pytest.fixture(scope="module", autouse=True)
def tokenizers(homes):
    """A small tokenizer where a user would put the real one."""
    made_models.roberta(home() / "checkpoints" / "roberta-base")
    made_models.bert(home() / "checkpoints" / "bert-base-uncased", spelt=True)
    made_models.gpt2(home() / "checkpoints" / "gpt2")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest of the files."""
    path = tmp_path_factory.mktemp("laion") / "fused.pt"
    tensors = {f"module.{name}": tensor for name, tensor in laion("laion_htsat_fused").items()}
    trained = {"epoch": np.int64(1), "name": "x", "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}}
    torch.save(trained | {"state_dict": tensors}, path)
    return path


def heard(model, seconds, part=slice(None)):
    clip = golden_weights.waveform([1, seconds, model.sample_rate, 0])[0].numpy()[part]
    return model.audio(RaggedArray.of([to_int16(clip)]), seed=0, quiet=True)[0].numpy()


@pytest.fixture(scope="module")
def model(small):
    return clap_files.load(f"laion:{small}")


@contextmanager
def seeded(seed, waveform):
    np.random.seed(seed)
    yield


@pytest.mark.parametrize("name", LAION)
def test_laions_released_code_agrees(tmp_path, monkeypatch, name):
    torch.save(laion(name), tmp_path / "model.pt")
    model = clap_files.load(f"laion:{tmp_path / 'model.pt'}")
    assert (model.sample_rate, model.dim, model.seconds, model.fused) == (48_000, 512, 10, name.endswith("fused"))
    golden = np.load(golden_weights.GOLDEN / f"{name}.npz")
    np.testing.assert_allclose(heard(model, 4), golden["audio_4"], atol=1e-4)
    monkeypatch.setattr(clap, "drawing_from", seeded)  # as the released code drew the parts that it heard of 13 s
    np.testing.assert_allclose(heard(model, 13), golden["audio_13"], atol=1e-4)
    ids = torch.from_numpy(golden["ids"])
    with torch.no_grad():
        read = functional.normalize(model._captions({"input_ids": ids, "attention_mask": (ids != 1).long()}))
    np.testing.assert_allclose(read.numpy(), golden["text"], atol=1e-4)


def test_laions_pann14_does_not_see_batch_mates(tmp_path):
    torch.save({"state_dict": laion("laion_pann14_fused")}, tmp_path / "model.pt")
    embedder = Embedder.clap(f"laion:{tmp_path / 'model.pt'}")
    sounds = [*golden_weights.waveform([2, 11, 48_000, 0]).numpy(), *golden_weights.waveform([1, 4, 48_000, 1]).numpy()]
    together, alone = embedder.sounds(sounds), [embedder.sounds([sound])[0] for sound in sounds]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("year", [2022, 2023])
def test_microsofts_released_code_agrees(tmp_path, year):
    torch.save({"model": microsoft(year)}, tmp_path / "model.pth")
    model = clap_files.load(f"msclap:{tmp_path / 'model.pth'}")
    seconds = {2022: 5, 2023: 7}[year]
    assert (model.sample_rate, model.dim, model.seconds) == (44_100, 1024, seconds)
    golden = np.load(golden_weights.GOLDEN / f"msclap_{year}.npz")
    np.testing.assert_allclose(heard(model, 3), golden["audio_3"], atol=1e-4)
    start = int(golden["start"])  # of the part that was heard of 9 s
    np.testing.assert_allclose(
        heard(model, 9, part=slice(start, start + seconds * 44_100)), golden["audio_9"], atol=1e-4
    )
    tokens = {"input_ids": torch.from_numpy(golden["ids"]), "attention_mask": torch.from_numpy(golden["mask"])}
    with torch.no_grad():
        read = functional.normalize(model._captions(tokens))
    np.testing.assert_allclose(read.numpy(), golden["text"], atol=1e-4)


@pytest.fixture(scope="module", params=[2022, 2023])
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("msclap") / f"{request.param}.pth"
    old = {"caption_encoder.base.embeddings.position_ids": torch.arange(512)[None]}
    if request.param == 2023:
        old = {"caption_encoder.base.h.0.attn.bias": torch.ones(1, 1, 9, 9)}
        old["caption_encoder.base.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save({"model": microsoft(request.param) | old}, path)
    return path


def test_microsofts_models_do_not_see_batch_mates_and_hear_long_sounds_by_what_they_hold(file):
    embedder = Embedder.clap(f"msclap:{file}")
    sounds = [*golden_weights.waveform([2, 9, 44_100, 0]).numpy(), *golden_weights.waveform([1, 2, 44_100, 1]).numpy()]
    together, alone = embedder.sounds(sounds), [embedder.sounds([sound])[0] for sound in sounds]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    captions = ["a dog barks", "rain! and birds sing over the engine of a car", "waves"]
    together, alone = embedder.sentences(captions), [embedder.sentences([caption])[0] for caption in captions]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


def test_microsofts_gpt2_reads_a_caption_to_its_last_token_less_exclamation_marks(tmp_path):
    torch.save(microsoft(2023), tmp_path / "model.pth")
    model = clap_files.load(f"msclap:{tmp_path / 'model.pth'}")
    (tokens,) = model._tokens(["A dog! rain"])
    assert tokens[-1] == len(model.tokenizer) - 1 and tokens.count(0) == 1
    with torch.no_grad():
        states = model.parts["reads"](input_ids=torch.tensor([tokens])).last_hidden_state
        expected = functional.normalize(model.parts["caption"](states[0, -2]), dim=0)
    torch.testing.assert_close(model.text(["A dog! rain"], quiet=True)[0], expected)


def test_a_wrapped_and_a_plain_file_of_any_age_are_one_model(model, tmp_path):
    plain = laion("laion_htsat_fused") | {"text_branch.embeddings.position_ids": torch.arange(514)[None]}
    torch.save(plain, tmp_path / "plain.pt")
    other = clap_files.load(f"laion:{tmp_path / 'plain.pt'}")
    assert torch.equal(model.text(["A dog barks!"], quiet=True), other.text(["A dog barks!"], quiet=True))
    assert model.fingerprint != other.fingerprint  # of other bytes


def test_captions_are_read_as_they_are_given(model):
    one, other = model.text(["A dog barks!", "a dog barks"], quiet=True)
    assert (one - other).abs().max() > 1e-4
    torch.testing.assert_close(model.text(["rain", "A dog barks!"], quiet=True)[1], one, atol=1e-5, rtol=0)


def test_long_sounds_are_heard_by_what_they_hold_or_in_windows(small):
    sounds = golden_weights.waveform([2, 11, 48_000, 0]).numpy()
    embedder, whole = Embedder.clap(f"laion:{small}"), Embedder.clap(f"laion:{small}", windows="mean")
    parts = embedder.sounds(list(sounds))
    torch.testing.assert_close(parts, embedder.sounds(list(sounds[::-1])).flip(0), atol=1e-5, rtol=0)
    pieces = embedder.sounds([sounds[0][:480_000], sounds[0][-480_000:]])
    mean = functional.normalize(pieces.mean(0), dim=0)
    torch.testing.assert_close(whole.sounds([sounds[0]])[0], mean, atol=1e-5, rtol=0)
    assert (parts[0] - mean).abs().max() > 1e-4 and whole.fingerprint != embedder.fingerprint


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [
        ("msclap", ["module.audio_branch.bn0.weight"], "LAION's CLAP; give as laion:<file>"),
        ("laion", ["audio_encoder.base.htsat.bn0.weight"], "Microsoft's CLAP; give as msclap:<file>"),
        ("msclap", ["clap.base.htsat.bn0.weight", "gpt.x"], "Microsoft's captioner clapcap, which embeds no sentences"),
        (
            "laion",
            ["audio_model.audio_encoder.batch_norm.bias"],
            "a ClapModel of transformers; give its folder as hf:<folder>",
        ),
        ("laion", ["bn0.weight", "conv_block1.conv1.weight"], "an audio encoder of PANNs, which reads no sentences"),
        (
            "msclap",
            ["features.0.0.weight"],
            "an audio encoder of EfficientAT, which reads no sentences; give it to a r",
        ),
        ("laion", ["layer.weight"], "no CLAP model; give a file of LAION's or Microsoft's, where this holds layer.w"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path, kind, names, words):
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt: {words}"):
        clap_files.load(f"{kind}:{tmp_path / 'model.pt'}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("text_projection.0.bias"),
            "LAION's CLAP of a kind that is not known here, without 'text_proj",
        ),
        (
            lambda t: t.update({"text_branch.embeddings.word_embeddings.weight": torch.ones(356)}),
            "LAION's CLAP of a kind that is not known here, of other shapes",
        ),
        (
            lambda t: t.update({"text_branch.embeddings.word_embeddings.weight": torch.ones(356, 8)}),
            "model.pt: .*give another file|model.pt: cannot be loaded",
        ),
        (lambda t: t.pop("audio_branch.norm.bias"), "not weights of a ClapModel: missing .*audio_encoder.norm.bias"),
        (lambda t: t.update({"audio_branch.x": torch.ones(1)}), "unexpected audio_model.audio_encoder.x"),
        (
            lambda t: t.update({"audio_projection.2.bias": torch.full((512,), torch.nan)}),
            "not finite.*audio_projection.linear2.bias",
        ),
        (
            lambda t: t.update(golden_weights.under("audio_branch", golden_weights.transform(rate=32_000))),
            "trained on another frontend than is known here: audio_branch.logmel_extractor.melW",
        ),
        (
            lambda t: t.update({"text_branch.embeddings.word_embeddings.weight": torch.ones(400, 64)}),
            "roberta-base: a tokenizer of 356 words, where .*model.pt has 400; fetch it again",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(tmp_path, change, words):
    tensors = dict(laion("laion_htsat_fused"))
    change(tensors)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=words):
        clap_files.load(f"laion:{tmp_path / 'model.pt'}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("caption_encoder.projection.linear1.weight"), "not known here, without 'linear1.weight'"),
        (lambda t: t.pop("caption_encoder.base.ln_f.bias"), "not weights of a GPT2Model: missing ln_f.bias"),
        (lambda t: t.pop("audio_encoder.projection.layer_norm.bias"), "Microsoft's projection: missing layer_norm.bi"),
        (
            lambda t: t.update({"audio_encoder.base.htsat.logmel_extractor.melW": torch.ones(769, 64)}),
            r"not weights of this frontend: logmel_extractor.melW is \(769, 64\), not \(513, 64\)",
        ),
    ],
)
def test_a_file_of_microsofts_that_does_not_fit_is_an_error(tmp_path, change, words):
    tensors = dict(microsoft(2023))
    change(tensors)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=words):
        clap_files.load(f"msclap:{tmp_path / 'model.pth'}")


def test_what_is_not_there_is_an_error(small, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none.pt: no such weights"):
        clap_files.load(f"laion:{tmp_path / 'none.pt'}")
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"tokenizer 'roberta-base': neither a folder here nor to be had"):
        clap_files.load(f"laion:{small}")
    RobertaConfig().save_pretrained(tmp_path / "checkpoints" / "roberta-base")  # of which a tokenizer is made, too
    with pytest.raises(ValueError, match=r"roberta-base: .*; (save or )?fetch it again"):
        clap_files.load(f"laion:{small}")


def test_a_file_is_evaluated(small, tmp_path):
    rows = []
    for number, what in enumerate(dataset_layouts.SOUNDS[:3]):
        dataset_layouts.sound(tmp_path / f"{number}.wav", number, 0.5)
        rows.append([f"{number}.wav", what])
    dataset_layouts.table(tmp_path / "captions.csv", ["file_name", "caption"], rows)
    words = ["evaluate", f"laion:{small}", "--on", "folder", "--root", str(tmp_path), "--quiet", "--device", "cpu"]
    outcome = CliRunner().invoke(app.app, words)
    assert outcome.exit_code == 0 and "3 clips, 3 queries" in " ".join(outcome.output.split()), outcome.output


def test_a_folder_is_indexed_and_searched_by_a_file_of_its_authors(small, tmp_path, monkeypatch):
    def call(*words, status=0):
        outcome = CliRunner().invoke(app.app, list(map(str, words)))
        assert outcome.exit_code == status, outcome.output
        return outcome.stdout if not status else " ".join(outcome.stderr.split())

    folder, kept = tmp_path / "sounds", home() / "checkpoints" / "own.pt"
    folder.mkdir()
    for number in range(2):
        dataset_layouts.sound(folder / f"{number}.wav", number, 0.5)
    monkeypatch.chdir(small.parent)
    call("index", folder, "--quiet", "--clap", f"laion:{small.name}")
    monkeypatch.chdir("/")
    found = json.loads(call("search", "rain", folder, "--json"))
    embedder = Embedder.clap(f"laion:{small}", device="cpu")
    scores = search.Index(folder, embedder).search("rain")["score"]
    assert [one["score"] for one in found] == pytest.approx(scores.tolist(), abs=1e-4) and len(found) == 2
    shutil.copy(small, kept)  # a name is enough there
    try:
        assert json.loads(call("search", "rain", folder, "--clap", "laion:own.pt", "--json")) == found
    finally:
        kept.unlink()
    said = call("index", folder, "--clap", "msclap:none.pth", status=1)
    assert "none.pth: no such file; give the file of a CLAP model, msclap:<file>" in said
