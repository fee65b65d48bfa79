import json

import made_models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ClapModel, ClapProcessor

from atr.encoders import clap, text
from atr.encoders.clap import Clap
from atr.system.packed import RaggedArray

RATE = 8000  # of the model made here, which takes 1 s
SECONDS = {"short": 0.3, "whole": 1.0, "hardly longer": 1.005, "longer": 1.7, "much longer": 3.2}
CAPTIONS = ["a dog barks", "rain", "birds sing, then somebody knocks at a door and a car passes by", "waves"]


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def folder(request, tmp_path_factory):
    return made_models.clap(tmp_path_factory.mktemp("clap"), fused=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return Clap(folder)


def packed(*seconds):
    rng = np.random.default_rng(0)
    rows = [rng.integers(-20_000, 20_000, round(length * RATE), dtype=np.int16) for length in seconds]
    return RaggedArray(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


@pytest.fixture(scope="module")
def clips():
    return packed(*SECONDS.values())


def processed(folder, waveform):
    """The processor's and the model's own answer to one clip, with the extractor drawing from numpy's generator."""
    processor, reference = ClapProcessor.from_pretrained(folder), ClapModel.from_pretrained(folder).eval()
    longest = np.zeros(10 * RATE, np.float32)  # beside a longer clip the extractor marks none at random
    both = [waveform.astype(np.float32) / 32767, longest]
    inputs = processor(text=["rain"], audio=both, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return reference(**inputs).audio_embeds[0]


def test_its_rate_and_width_are_the_models(folder, model):
    assert model.sample_rate == RATE and model.dim == 12
    assert text.folder(str(folder)) == folder and len(text.fingerprint(folder)) == 24


def test_audio_is_the_models_own_answer_to_each_clip(folder, model, clips):
    embeddings = model.audio(clips, seed=3, quiet=True)
    assert embeddings.shape == (5, 12) and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    for row, embedding in enumerate(embeddings):
        with clap.drawing_from(3, clips[row]):
            expected = processed(folder, clips[row])
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-4)


def test_text_is_the_models_own_answer_to_each_caption(folder, model):
    embeddings = model.text(CAPTIONS, quiet=True)
    processor, reference = ClapProcessor.from_pretrained(folder), ClapModel.from_pretrained(folder).eval()
    assert embeddings.shape == (4, 12) and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    silence = np.zeros(RATE, np.float32)
    for caption, embedding in zip(CAPTIONS, embeddings, strict=True):
        inputs = processor(text=[caption], audio=[silence], sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(embedding, reference(**inputs).text_embeds[0], atol=1e-5, rtol=1e-4)


def test_embeddings_have_length_one(model, clips):
    for embeddings in (model.audio(clips, seed=0, quiet=True), model.text(CAPTIONS, quiet=True)):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))


def test_embeddings_do_not_depend_on_batch_mates(model, clips, monkeypatch):
    audio, captions = model.audio(clips, seed=0, quiet=True), model.text(CAPTIONS, quiet=True)
    assert len(audio) <= clap.AUDIO_BATCH and len(captions) <= clap.TEXT_BATCH
    monkeypatch.setattr(clap, "AUDIO_BATCH", 1)
    monkeypatch.setattr(clap, "TEXT_BATCH", 1)
    torch.testing.assert_close(model.audio(clips, seed=0, quiet=True), audio, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.text(CAPTIONS, quiet=True), captions, atol=1e-5, rtol=1e-4)


def test_only_clips_longer_than_the_model_takes_depend_on_the_seed(model, clips):
    first, again, other = (model.audio(clips, seed=seed, quiet=True) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    changed = (first - other).abs().amax(1) > 1e-5
    # of a clip that is longer by less than a frame, a fused model sees all
    assert changed.tolist() == [False, False, not model.fused, True, True]


def test_a_clip_has_one_embedding_in_whatever_row_batch_and_company(model, clips, monkeypatch):
    longest = clips[len(clips) - 1]
    alone = model.audio(RaggedArray(longest, np.array([0, len(longest)])), seed=0, quiet=True)[0]
    both = np.concatenate([longest, clips.data[: 3 * RATE], longest])
    rows = RaggedArray(both, np.cumsum([0, len(longest), 3 * RATE, len(longest)]))
    for size in (clap.AUDIO_BATCH, 2):
        monkeypatch.setattr(clap, "AUDIO_BATCH", size)
        first, other, last = model.audio(rows, seed=0, quiet=True)
        torch.testing.assert_close(torch.stack([first, last]), torch.stack([alone] * 2), atol=1e-6, rtol=0)
        assert (first - other).abs().max() > 1e-4


def test_the_parts_heard_of_a_clip_are_drawn_from_its_samples_and_the_seed():
    def drawn(seed, samples):
        with clap.drawing_from(seed, samples):
            return np.random.random()

    clip = np.arange(100, dtype=np.int16)
    other = np.where(clip == 99, 98, clip).astype(np.int16)
    assert drawn(0, clip) == drawn(0, clip.copy())
    assert len({drawn(0, clip), drawn(1, clip), drawn(0, other)}) == 3


def test_the_longest_clip_that_is_heard_whole_is_the_extractors(model):
    assert model.seconds == 1.0


def test_the_global_generator_neither_counts_nor_moves(model, clips):
    first = model.audio(clips, seed=0, quiet=True)
    np.random.seed(5)
    expected = np.random.RandomState(5).random(3)
    assert torch.equal(model.audio(clips, seed=0, quiet=True), first)
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_the_global_generator_is_put_back_after_an_error(model):
    np.random.seed(5)
    with pytest.raises(RuntimeError, match="stop"), clap.drawing_from(0, np.zeros(3, np.int16)):
        np.random.random()
        raise RuntimeError("stop")
    assert np.random.random() == np.random.RandomState(5).random()


def test_a_long_caption_is_cut_as_laion_cuts_it(model):
    tokens = model.tokenizer("rain falls " * 200, truncation=True, max_length=77)["input_ids"]
    assert len(tokens) == 77
    cut = model.tokenizer.decode(tokens, skip_special_tokens=True)
    long, short = model.text(["rain falls " * 200, cut], quiet=True)
    torch.testing.assert_close(long, short)


def copied(folder, target, *left_out):
    target.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in left_out:
            (target / path.name).symlink_to(path)
    return target


TAKES = r"a CLAP model \(--clap\) is the folder, or the name on the Hugging Face Hub, of a ClapModel of transformers"


def test_what_is_no_clap_model_is_an_error_that_says_what_one_is(folder, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "laion.pt")
    convert = f"{TAKES}, such as laion/clap-htsat-unfused; convert LAION's files by convert_clap_original_pytorch_to_hf"
    with pytest.raises(ValueError, match=f"laion.pt: a file, and {convert}"):
        clap.folder(str(tmp_path / "laion.pt"))
    with pytest.raises(ValueError, match=f"none.pt: no such file, and {convert}"):
        clap.folder(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match=f"{tmp_path}: a folder without config.json; {TAKES}"):
        clap.folder(str(tmp_path))
    with pytest.raises(ValueError, match=f"bert: a model of type 'bert'; {TAKES}"):
        clap.folder(str(made_models.bert(tmp_path / "bert")))
    with pytest.raises(
        FileNotFoundError, match="CLAP model 'no/such': neither a folder here nor to be had from the Hu"
    ):
        clap.folder("no/such")
    for content, message in {
        '{"training": "frozen"}': "a run, which --run takes",
        "[": "not the configuration",
    }.items():
        other = tmp_path / str(len(content))
        other.mkdir()
        (other / "config.json").write_text(content)
        with pytest.raises(ValueError, match=f"{message}.*; {TAKES}"):
            clap.folder(str(other))
    assert clap.folder(str(folder)) == folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text_projection.linear1.weight"), "missing text_projection.linear1.weight; save or fetch it"),
        (
            lambda t: t["audio_projection.linear1.weight"].fill_(torch.nan),
            "not finite.*audio_projection.linear1.weight",
        ),
        (
            lambda t: t.update({"text_projection.linear1.weight": torch.ones(12, 16, dtype=torch.int8)}),
            "quantised: text_projection.linear1.weight is I8",
        ),
    ],
)
def test_weights_that_are_missing_quantised_or_not_finite_are_an_error(folder, tmp_path, change, message):
    other = copied(folder, tmp_path / "clap", "model.safetensors")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"clap: .*{message}"):
        Clap(other)


def test_weights_that_are_a_pickle_are_taken_where_there_are_no_others(folder, model, tmp_path):
    """As laion/clap-htsat-unfused has them on the Hub, with the positions' numbers that transformers kept once."""
    other, kept = copied(folder, tmp_path / "clap", "model.safetensors"), tmp_path / "clap" / text.PICKLED
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors | {"text_model.embeddings.position_ids": torch.arange(514)[None]}, kept)
    torch.testing.assert_close(Clap(other).text(CAPTIONS), model.text(CAPTIONS))
    assert kept in text.files(other) and text.fingerprint(other) != text.fingerprint(folder)
    torch.save(tensors | {"text_projection.linear1.weight": torch.ones(12, 16, dtype=torch.int8)}, kept)
    with pytest.raises(ValueError, match="clap: quantised: text_projection.linear1.weight is torch.int8; take or save"):
        Clap(other)
    torch.save({"model": torch.nn.Linear(2, 2)}, kept)
    with pytest.raises(ValueError, match=r"clap: cannot be loaded \(.*holds no state dict"):
        Clap(other)


def test_a_tokenizer_that_is_not_the_models_is_an_error(folder, tmp_path):
    """Of a folder without its files transformers makes one of five words."""
    other = copied(folder, tmp_path / "clap", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    with pytest.raises(ValueError, match="clap: a tokenizer of 5 words, where the model has 356; save or fetch"):
        Clap(other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feature_size": 32}, "gives 32 mel bands and 101 frames, where the model of config.json hears 64 and up to"),
        ({"hop_length": 4}, "gives 64 mel bands and 2,001 frames, where the model of config.json hears 64 and up to 1"),
    ],
)
def test_a_frontend_that_is_not_the_models_is_an_error(folder, tmp_path, change, words):
    other = copied(folder, tmp_path / "clap", "preprocessor_config.json")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"clap: preprocessor_config.json {words}"):
        Clap(other)


def test_damaged_weights_are_an_error_that_names_the_folder(folder, tmp_path):
    other = copied(folder, tmp_path / "clap", "model.safetensors")
    (other / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"clap: cannot be loaded \(.+\); save or fetch it again"):
        Clap(other)


def test_a_folder_without_the_extractor_is_an_error(folder, tmp_path):
    for path in folder.iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
        Clap(tmp_path)


def test_an_extractor_of_another_kind_of_model_is_an_error(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = (folder / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").unlink()
    swapped = (
        config.replace('"fusion"', '"other"').replace('"rand_trunc"', '"fusion"').replace('"other"', '"rand_trunc"')
    )
    (tmp_path / "preprocessor_config.json").write_text(swapped)
    with pytest.raises(ValueError, match="does not go with truncation"):
        Clap(tmp_path)
