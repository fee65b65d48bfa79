import numpy as np
import pytest
import soundfile
import torch
from made_models import clap

from atr import Embedder, RunConfig, fit
from atr.corpora import audio, containers
from atr.encoders.clap import Clap
from atr.encoders.text import TextEncoder
from atr.inference.search import Index
from atr.training import preparation
from atr.training.records import Run

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
KINDS = {
    "frozen": {},
    "frozen, as released": {"training": "frozen_released", "audio_weights": None, "max_seconds": 1.0, "epochs": 0},
    "fine-tuned": {"training": "finetuned"},
    "fine-tuned whole": {"training": "finetuned", "text_layers": None, "caption_style": None},
    "residual": {"training": "scratch", "audio_weights": None, "audio_encoder": "compact_resnet", "epochs": 0},
    "text-aware": {"training": "finetuned", "text_aware": {"projection_dim": 16}},
}


def trained(corpus, runs, **changes):
    settings = {"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16}
    return fit(RunConfig(**settings | changes), corpus, runs=runs)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def embedder(run):
    return Embedder(run, device="cpu")


@pytest.fixture(scope="module")
def waveforms(corpus):
    part = corpus.split("test")
    return [corpus.read(clip)[0] for clip in part.clips["clip"]]


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_and_sentences_get_the_similarities_that_the_run_gave_them(corpus, waveforms, tmp_path, kind):
    run = trained(corpus, tmp_path, **KINDS[kind])
    state = torch.random.get_rng_state()
    embedder = Embedder(run, corpus, device="cpu")
    sounds = embedder.sounds(waveforms)
    sentences = embedder.sentences(corpus.split("test").captions["caption"].tolist())
    known = run.embeddings
    expected = known["similarity"] if embedder.text_aware else known["text"] @ known["audio"].T
    torch.testing.assert_close(embedder.similarity(sentences, sounds), expected, atol=2e-5, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sounds.shape[0] == 16 and sounds.shape[-1] == embedder.dim == 16


def test_a_sound_is_heard_alike_alone_among_others_and_from_a_file(embedder, waveforms, tmp_path):
    together = embedder.sounds([waveforms[0], waveforms[1][:20_000], waveforms[2]])
    alone = torch.cat([embedder.sounds([waveforms[0]]), embedder.sounds([waveforms[1][:20_000]])])
    torch.testing.assert_close(together[:2], alone, atol=1e-5, rtol=0)
    soundfile.write(tmp_path / "one.wav", np.stack([waveforms[0]] * 2, 1), embedder.sample_rate, subtype="FLOAT")
    torch.testing.assert_close(embedder.sounds([tmp_path / "one.wav"]), alone[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_sentences_do_not_depend_on_each_other_and_are_read_as_in_training(embedder):
    several = embedder.sentences(["A dog barks!", "rain falls on a roof while thunder rolls far away", "a dog barks"])
    torch.testing.assert_close(several[0], embedder.sentences(["a dog barks"])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(several[0], several[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["frozen", "fine-tuned", "fine-tuned whole"])
def test_what_is_fixed_of_sentences_is_read_once_for_all_runs(corpus, tmp_path, monkeypatch, kind):
    runs = [trained(corpus, tmp_path, seed=seed, **KINDS[kind]) for seed in (0, 1)]
    first, second = (Embedder(run, corpus, device="cpu") for run in runs)
    words = ["a dog barks", "rain falls on a roof while thunder rolls far away"]
    expected = [one.sentences(words) for one in (first, second)]
    torch.testing.assert_close(first.sentences(words, keep=True), expected[0], atol=1e-5, rtol=0)
    monkeypatch.setattr(TextEncoder, "rows", lambda *_: pytest.fail("read again"))
    torch.testing.assert_close(second.sentences(words, keep=True), expected[1], atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_nothing_gives_nothing_and_what_cannot_be_embedded_is_named(embedder, run, tmp_path):
    assert embedder.sounds([]).shape == embedder.sentences([]).shape == (0, 16)
    with pytest.raises(ValueError, match=r"sentence '  \?': no words; describe a sound in a few"):
        embedder.sentences(["a dog", "  ?"])
    with pytest.raises(ValueError, match=r"a waveform of shape \(2, 100\); give \(samples,\), one channel"):
        embedder.sounds([np.zeros((2, 100), np.float32)])
    with pytest.raises(ValueError, match="sentences: one text, 'a dog'; give a list of them, if of one"):
        embedder.sentences("a dog")
    with pytest.raises(ValueError, match="sentence nan: no text; leave out what has no caption"):
        embedder.sentences(["a dog", float("nan")])
    with pytest.raises(containers.AudioError, match="none.wav: no such file"):
        embedder.sounds([tmp_path / "none.wav"])
    for one in ("none.wav", tmp_path / "none.wav", np.zeros(100, np.float32), torch.zeros(100)):
        with pytest.raises(ValueError, match=rf"sounds: one {type(one).__name__}; give a list, if of one"):
            embedder.sounds(one)
    with pytest.raises(FileNotFoundError, match="not finished; atr.fit"):
        Embedder(Run(tmp_path / "nothing"))


def test_clap_embeds_as_its_baseline_does(corpus, tmp_path):
    folder = clap(tmp_path / "clap")
    embedder = Embedder.clap(folder, device="cpu")
    part = corpus.split("test")
    waveforms = [corpus.read(clip) for clip in part.clips["clip"][:3]]
    sounds = embedder.sounds([audio.resample(wave, rate, embedder.sample_rate) for wave, rate in waveforms])
    captions = part.captions["caption"].tolist()
    sides = preparation.external(
        embedder.config, part, folder, preparation.normal_captions(embedder.config, part), "cpu", True
    )
    expected, words = (side.data for side in sides)
    assert embedder.seconds == 1.0
    torch.testing.assert_close(sounds, expected[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(embedder.sentences(captions), words, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedder.similarity(words, sounds), words @ expected[:3].T, atol=1e-5, rtol=0)


def test_clap_reads_what_was_typed(corpus, tmp_path):
    folder, typed = clap(tmp_path / "clap"), ["A dog BARKS, rain falls!", "a dog barks rain falls"]
    embedder = Embedder.clap(folder, device="cpu")
    expected = Clap(folder).text(typed)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(embedder.sentences(typed), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"sentence ' \?!': no words"):
        embedder.sentences([" ?!"])
    setting = RunConfig(training="external", audio_encoder="clap", text_encoder=str(folder), epochs=0)
    assert setting.caption_style is not None  # the papers', for encoders trained here
    captions = corpus.split("test").captions["caption"].tolist()
    run = fit(setting, corpus, runs=tmp_path / "runs", device="cpu")
    torch.testing.assert_close(run.embeddings["text"], Clap(folder).text(captions, quiet=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(Embedder(run, corpus, device="cpu").sentences(typed), expected, atol=1e-6, rtol=0)


def test_an_index_by_clap_is_the_same_updated_or_made_anew(tmp_path, monkeypatch):
    embedder, rng = Embedder.clap(clap(tmp_path / "clap"), device="cpu"), np.random.default_rng(0)
    for name, seconds in {"a": 1.7, "b": 2.3, "c": 0.4}.items():
        (tmp_path / "sounds").mkdir(exist_ok=True)
        sound = rng.uniform(-0.5, 0.5, round(seconds * 44_100))
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", sound, 44_100)
    later = tmp_path / "sounds" / "a.wav"
    kept = later.read_bytes()
    later.unlink()
    found = []
    for home in ("updated", "anew"):
        monkeypatch.setenv("ATR_HOME", str(tmp_path / home))
        if home == "updated":
            Index(tmp_path / "sounds", embedder).update(quiet=True)
            later.write_bytes(kept)
        index = Index(tmp_path / "sounds", embedder)
        assert index.update(quiet=True).segments == 2 + 3 + 1
        found.append(index.search("Rain, falling.").sort_values("path", ignore_index=True))
    assert found[0]["path"].tolist() == found[1]["path"].tolist() and len(found[0]) == 3
    np.testing.assert_allclose(found[0][["score", "start", "end"]], found[1][["score", "start", "end"]], atol=1e-6)
