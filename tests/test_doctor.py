"""What `atr evaluate` notices: each fault is made, and its absence is quiet."""

import json
import shutil
from dataclasses import replace

import dataset_layouts
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_embeddings import written
from typer.testing import CliRunner

from atr.cli import app
from atr.encoders.pooling import FrameRows
from atr.evaluation import doctor, evaluate, leaks, protocols

CLIPS = 9


class Made:
    """Embeddings by the clip's first samples and the caption's letters, with faults as they are wanted."""

    name, fingerprint = "made", "0"

    def __init__(self, chance=0.0, batch=0.0, side="sounds", drawn=None):
        self.chance, self.batch, self.side, self.rng = chance, batch, side, np.random.default_rng(0)
        self.drawn, self.seed = drawn, 0

    def with_seed(self, seed):
        if self.drawn is None:
            raise ValueError("draws nothing")
        other = Made(drawn=self.drawn)
        other.seed = seed
        return other

    def sounds(self, part, quiet=False):
        waves = [part.read(clip)[0][:16] + (self.drawn or 0) * self.seed for clip in part.clips["clip"]]
        return self._faulty("sounds", waves)

    def sentences(self, texts):
        return self._faulty("captions", [np.random.default_rng(list(map(ord, text))).normal(size=16) for text in texts])

    def similarity(self, sentences, sounds):
        return sentences, sounds

    def _faulty(self, side, rows):
        rows = F.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1)
        if side == self.side:
            rows = rows + self.chance * torch.from_numpy(self.rng.standard_normal(rows.shape)).float()
            rows = rows + self.batch * rows.mean(0)
            rows[:, 0] += self.batch * len(rows)
        return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("test sounds")
    rows = []
    for number in range(CLIPS):
        dataset_layouts.sound(folder / f"{number}.wav", number, 0.3)
        rows += [[f"{number}.wav", f"Sound number {number}."], [f"{number}.wav", f"What {number} sounds like"]]
    dataset_layouts.table(folder / "captions.csv", ["file_name", "caption"], rows)
    return folder


@pytest.fixture(scope="module")
def part(folder):
    return protocols.get("folder").load(folder)


def notes(part, model=None, **options):
    return evaluate.evaluate(model or Made(), protocols.get("folder"), part, **options).notes


def test_nothing_is_noticed_where_nothing_is_wrong(part):
    assert notes(part) == ()


class TestModels:
    @pytest.mark.parametrize(
        ("rows", "found"),
        [
            (torch.ones(10, 4) + 0.01 * torch.eye(10, 4), "audio embeddings are all alike, with cosines of 1.000 on"),
            (torch.tensor([[1.0, 2], [-1, -2]] * 5), "audio embeddings are all alike"),
            (torch.cat([torch.zeros(2, 12), torch.eye(12)]), "2 of 14 audio embeddings are zero"),
        ],
    )
    def test_a_collapsed_tower(self, rows, found):
        assert found in " ".join(doctor.collapse("audio", rows))

    def test_embeddings_that_have_not_collapsed(self):
        rng = torch.Generator().manual_seed(0)
        assert not list(doctor.collapse("audio", torch.randn(3000, 8, generator=rng)))
        cone = torch.randn(100, 64, generator=rng) + 1.5  # in a cone, as those of trained encoders
        assert not list(doctor.collapse("audio", cone))
        assert not list(doctor.collapse("audio", torch.ones(3, 4)))  # too few to tell

    @pytest.mark.parametrize("side", ["sounds", "captions"])
    def test_chance_and_batches(self, part, side):
        (chance,) = notes(part, Made(chance=0.02, side=side))
        assert f"embeddings of {side} depend on chance" in chance
        (batch,) = notes(part, Made(batch=0.02, side=side))
        assert f"embeddings of {side} depend on their batch" in batch
        assert notes(part, Made(batch=1e-6, chance=1e-6, side=side)) == ()

    def test_parts_that_the_seed_draws(self, part):
        (found,) = notes(part, Made(drawn=0.1))
        assert "depend on the seed: of longer ones a part is drawn" in found and found.endswith("--seeds 0,1,2")
        assert notes(part, Made(drawn=0.1), seed=1) == () and notes(part, Made(drawn=1e-6)) == ()

    def test_frames_are_compared_as_far_as_a_sound_goes(self):
        values = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
        frames, lengths = FrameRows(values, torch.ones(3, 4, dtype=bool)), np.arange(3)
        whole = frames.pad(9)
        assert not list(doctor.dependence("sounds", whole, lengths, lambda row: frames[row : row + 1]))
        alone = FrameRows(values[:, 1:], frames.mask[:, 1:])
        assert list(doctor.dependence("sounds", whole, lengths, lambda row: alone[row : row + 1]))


class TestTestSets:
    def test_a_caption_of_several_clips(self, part):
        captions = part.captions.copy()
        captions.loc[2, "caption"] = "sound, number 0"
        (found,) = notes(replace(part, captions=captions))
        assert found.startswith("1 captions are of several clips, as 'Sound number 0.' of '0.wav' and '1.wav'")

    def test_a_caption_that_all_of_its_clips_answer_is_no_fault(self, part):
        captions = part.captions.copy()
        captions.loc[2, "caption"] = "sound, number 0"
        clips = part.clips.assign(description=["alike", "alike", *[""] * (CLIPS - 2)])
        assert notes(replace(part, captions=captions, clips=clips)) == ()

    def test_clips_of_the_same_bytes(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        shutil.copy(tmp_path / "3.wav", tmp_path / "5.wav")
        (found,) = notes(protocols.get("folder").load(tmp_path))
        assert found.startswith("2 clips have another one's bytes, as '3.wav' and '5.wav'")


class TestTraining:
    @pytest.fixture
    def train(self, tmp_path, monkeypatch):
        """Two other sounds with captions of their own, in the splits train and validation."""
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        rows = [["a.wav", "Something else", "train"], ["b.wav", "SOUND NUMBER 4", "validation"]]
        for number, (name, *_) in enumerate(rows):
            dataset_layouts.sound(tmp_path / "train" / name, 50 + number, 0.3)
        dataset_layouts.table(tmp_path / "train" / "captions.csv", ["file_name", "caption", "split"], rows)
        return tmp_path / "train"

    def test_what_is_new_is_said_to_be(self, part, train):
        queries, clips = notes(part, train=train)
        assert queries == f"0 of 18 queries are in {train}" and clips == f"0 of 9 clips are in {train}"

    def test_sounds_and_captions_that_a_model_was_trained_on(self, part, folder, train):
        shutil.copy(folder / "7.wav", train / "c.wav")
        text = (train / "captions.csv").read_text()
        (train / "captions.csv").write_text(text + "c.wav,sound number 7,train\n")
        queries, clips = notes(part, train=train)
        assert queries == f"1 of 18 queries are in {train}, as 'Sound number 7.'"
        assert clips == f"1 of 9 clips are in {train}, as '7.wav': {train / 'c.wav'}"
        (alone,) = notes(part, train=train / "captions.csv")
        assert alone.startswith("1 of 18 queries are in")

    @pytest.mark.parametrize(
        ("text", "close"),
        [
            ("a grey dog barks in the garden", True),  # one word of seven is another
            ("A dog barks loudly, in the garden.", True),  # one more
            ("in the garden a brown dog barks", True),  # in another order
            ("a grey cat barks in the garden", False),  # two of seven
            ("a dog barks", False),
            ("rain falls", False),
        ],
    )
    def test_captions_with_a_word_changed(self, part, train, text, close):
        captions = part.captions.copy()
        captions.loc[0, "caption"] = "A brown dog barks in the garden"
        table = train / "captions.csv"
        table.write_text(f'file_name,caption,split\nc.wav,sound number 7,train\na.wav,"{text}",train\n')
        (said,) = notes(replace(part, captions=captions), train=table)
        assert said.startswith(f"1 of 18 queries are in {table}, as 'Sound number 7.'")
        end = f"1 more share 70% or more of their words with a caption there, as {captions.loc[0, 'caption']!r} with "
        assert said.endswith(f"; {end}{text!r}") == close and ("more share" in said) == close

    def test_the_nearest_caption_is_that_of_the_largest_share(self, monkeypatch):
        monkeypatch.setattr(leaks, "PAIRS", 300)
        generator, letters = np.random.default_rng(0), list("abcdefghijklmnop")
        queries, texts = ([" ".join(generator.choice(letters, n % 6 + 1)) for n in range(40)] for _ in range(2))

        def share(one, other):
            one, other = set(one.split()), set(other.split())
            return len(one & other) / len(one | other)

        best = {query: max(share(query, text) for text in texts) for query in queries}
        found = list(leaks.nearest(queries, texts))
        assert {query for query, *_ in found} == {query for query, most in best.items() if most}
        for query, text, most in found:
            assert most == pytest.approx(share(query, text)) == pytest.approx(best[query])
        assert list(leaks.nearest([], texts)) == [] and list(leaks.nearest(["zebra", ""], texts)) == []
        assert list(leaks.nearest(queries, [])) == []

    @pytest.mark.parametrize(
        ("one", "other", "alike"),
        [
            ("Café noir", "cafe\u0301 NOIR!", True),
            ("ａ ｄｏｇ", "a dog", True),  # of full width
            ("Straße", "STRASSE", True),
            ("लड़का", "लड़की", False),  # a boy, a girl: they differ by a mark
            ("a dog", "a dogs", False),
            ("dog_bark", "dog bark", True),
        ],
    )
    def test_words_are_alike_but_for_case_punctuation_and_composition(self, one, other, alike):
        assert (leaks.words(one) == leaks.words(other)) == alike

    def test_where_no_blanks_are_written_letters_are_words(self):
        one, other = "一只狗在花园里大声地叫着", "一只猫在花园里大声地叫着"
        assert list(leaks.nearest([one], [other])) == [(one, other, pytest.approx(11 / 13))]

    @pytest.mark.parametrize("split", ["train", " Train", "training", "development", "dev"])
    def test_a_split_may_have_any_of_its_names(self, part, train, split):
        (train / "captions.csv").write_text(f"file_name,caption,split\na.wav,sound number 7,{split}\n")
        assert notes(part, train=train)[0].startswith("1 of 18 queries")
        (train / "captions.csv").write_text(f"file_name,caption,split\na.wav,sound number 7,{split}\nb.wav,x,train\n")
        others = {"development": 0, "dev": 0}  # beside train, these mean validation
        assert notes(part, train=train)[0].startswith(f"{others.get(split, 1)} of 18 queries")

    def test_a_folders_tables_are_all_but_those_named_for_test_or_validation(self, part, train):
        said = "file_name,caption\nx.wav,sound number {}\n"
        for number, name in enumerate(
            ("lists/train.csv", "test.csv", "lists/clotho_captions_evaluation.csv", "val.csv")
        ):
            (train / name).parent.mkdir(exist_ok=True)
            (train / name).write_text(said.format(number))
        (train / "metadata.csv").write_bytes("file_name,author\nx.wav,Zoë\n".encode("latin-1"))
        queries = notes(part, train=train)[0]
        assert queries == f"1 of 18 queries are in {train}, as 'Sound number 0.'"
        (train / "broken.csv").write_text('caption\n"open\n')
        assert notes(part, train=train)[0].startswith(
            f"{queries}; 1 tables cannot be read: {train / 'broken.csv'}, line"
        )

    def test_the_test_sets_own_files_do_not_count(self, part, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        for train in (folder, tmp_path / "link"):
            none = f"no captions to train on are in {train}, so queries were not looked for"
            assert notes(part, train=train) == (none, f"0 of 9 clips are in {train}")

    def test_beside_the_test_set_what_is_trained_on_counts(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        shutil.copytree(folder, tmp_path / "all" / "test")
        shutil.copytree(folder, tmp_path / "all" / "train")
        part = protocols.get("folder").load(tmp_path / "all" / "test")
        queries, clips = notes(part, train=tmp_path / "all")
        assert queries.startswith("18 of 18 queries") and clips.startswith("9 of 9 clips")

    def test_a_sound_in_another_format(self, part, folder, train):
        """At another level, 16 bit FLAC: found by how it sounds."""
        import soundfile

        waveform, rate = soundfile.read(folder / "2.wav")
        soundfile.write(train / "c.flac", 0.4 * waveform, rate)
        assert notes(part, train=train)[1] == f"1 of 9 clips are in {train}, as '2.wav': {train / 'c.flac'}"

    def test_where_there_is_nothing_that_is_said(self, part, train):
        (train / "captions.csv").write_text("file_name,caption,split\nb.wav,sound number 4,validation\n")
        for name in ("a.wav", "b.wav"):
            (train / name).unlink()
        assert notes(part, train=train) == (
            f"no captions to train on are in {train}, so queries were not looked for",
            f"no sounds are in {train}, so clips were not looked for",
        )

    def test_files_that_cannot_be_read_are_said(self, part, folder, train):
        shutil.copy(folder / "7.wav", train / "c.wav")
        (train / "d.wav").write_bytes(b"x")
        said = notes(part, train=train)[1]
        assert said.startswith("1 of 9 clips are in") and said.endswith(
            f"; 1 files cannot be read, as {train / 'd.wav'}"
        )

    def test_a_table_without_captions_is_named(self, part, train):
        dataset_layouts.table(train / "x.csv", ["file", "text"], [["a", "b"]])
        with pytest.raises(ValueError, match="x.csv: no column 'caption' or 'caption_1'"):
            notes(part, train=train / "x.csv")


def test_the_command_says_and_keeps_what_is_noticed(folder, part, tmp_path):
    made = written(tmp_path, part, np.ones((CLIPS, 4)), np.random.default_rng(0).standard_normal((2 * CLIPS, 4)))
    words = ["evaluate", f"embeddings:{made}", "--on", "folder", "--root", str(folder), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app.app, words)
    assert "noticed: audio embeddings are all alike" in outcome.output
    assert "all alike" in json.loads((tmp_path / "out" / "folder.json").read_text())["noticed"][0]
    assert "--train: no gone;" in CliRunner().invoke(app.app, [*words, "--train", "gone"]).output
