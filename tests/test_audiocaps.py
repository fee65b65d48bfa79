import csv
import os
import stat
from pathlib import Path

import dataset_layouts
import pytest

from atr.corpora import audiocaps, csvtable, load_corpus
from atr.corpora.corpus import CorpusError
from atr.corpora.files import coverage
from atr.system import download, places


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path):
    return dataset_layouts.audiocaps(tmp_path / "audiocaps", seconds=0.2)


SHORT = {"train": "train", "validation": "val", "test": "test"}
MEI2022 = Path(__file__).parents[2] / "shared" / "data" / "captions"
IDS = [dataset_layouts.youtube_id(number) for number in range(12)]


def as_mei2022(root, to):
    """The tables as Mei et al. 2022 wrote them: one row per clip, names with a Y in front."""
    for split, rows in audiocaps.clip_lists(root).items():
        width = max(len(captions) for _, captions in rows.values())
        columns = ["caption"] if width == 1 else [f"caption_{k}" for k in range(1, width + 1)]
        table = [[f"Y{clip}.wav", *captions] for clip, (_, captions) in rows.items()]
        dataset_layouts.table(to / "csv_files" / f"{SHORT[split]}.csv", ["file_name", *columns], table)


def test_clips_captions_and_splits_are_those_of_the_official_tables(home, root):
    corpus = load_corpus("audiocaps", root)
    assert corpus.clips["split"].value_counts().to_dict() == {"train": 6, "validation": 3, "test": 3}
    assert corpus.clips["clip"].tolist() == IDS and corpus.clips["duration"].tolist() == [0.2] * 12
    assert corpus.split("train").captions.groupby("clip").size().eq(1).all()
    with open(root / "val.csv", newline="", encoding="utf-8") as file:
        rows = [(row["youtube_id"], row["caption"]) for row in csv.DictReader(file)]
    assert corpus.split("validation").captions.values.tolist() == [list(row) for row in rows] and len(rows) == 15
    assert len(corpus.read(IDS[0])[0]) == 6400 and corpus.problems().empty


def test_captions_that_repeat_on_a_clip_stay_as_in_the_papers(home, root):
    validation = load_corpus("audiocaps", root).split("validation").captions
    assert len(validation) == 15 and validation.duplicated().sum() == 3


def test_both_forms_of_the_tables_give_the_same_corpus(home, root, tmp_path):
    as_mei2022(root, tmp_path / "mei")
    (root / "audio").rename(tmp_path / "mei" / "waveforms")
    again = load_corpus("audiocaps", tmp_path / "mei")
    (tmp_path / "mei" / "waveforms").rename(root / "audio")
    assert again.fingerprint == load_corpus("audiocaps", root).fingerprint


def moved(root, name):
    """All audio flat in one folder, each clip under the name that `name` makes of its id."""
    for path in sorted((root / "audio").rglob("*.wav")):
        path.rename(root / name(path.stem))
    for folder in (root / "audio").iterdir():
        folder.rmdir()


NAMES = {
    "id": lambda clip: f"{clip}.wav",
    "Y and id": lambda clip: f"Y{clip}.wav",
    "id and start": lambda clip: f"{clip}_30.wav",
    "Y, id, start and end": lambda clip: f"Y{clip}_30.000_40.000.WAV",
    "other suffix": lambda clip: f"{clip}_0_10.flac",
}


def test_the_lists_of_2_0_stand_over_the_sounds_of_v1(home, root):
    with pytest.raises(FileNotFoundError, match="audiocaps2: no folder .*; run: atr data audiocaps2"):
        load_corpus("audiocaps2", root)
    for table in ("train.csv", "val.csv", "test.csv"):
        header, *rows = csvtable.frame(root / table).pipe(lambda t: [list(t), *t.values.tolist()])
        lowered = [[*row[:3], row[3].lower().replace("twice", "two times")] for row in rows]
        dataset_layouts.table(places.home() / "audiocaps2" / table, header, lowered)
    first, second = load_corpus("audiocaps", root), load_corpus("audiocaps2", root)
    assert second.clips.equals(first.clips) and second.name == "audiocaps2"
    lowered = first.captions["caption"].str.lower().str.replace("twice", "two times")
    assert second.captions["caption"].tolist() == lowered.tolist() != first.captions["caption"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_audio_is_found_by_youtube_id_whatever_decorates_it(home, root, name):
    moved(root, NAMES[name])
    corpus = load_corpus("audiocaps", root)
    assert corpus.clips["clip"].tolist() == IDS


def test_ids_that_look_like_decorated_ones_are_told_apart_by_the_table(home, root):
    # "Y" and eleven characters; an id that begins with Y; an id that ends like a start time
    assert audiocaps._ids("Y_0000_bC-_x") == ["_0000_bC-_x"]
    assert audiocaps._ids("Y_0000_bC-_") == ["Y_0000_bC-_"]
    assert audiocaps._ids("abcdefgh_10_5") == ["abcdefgh_10"]
    assert audiocaps._ids("short") == [] and audiocaps._ids("abcdefghijk_1_2_3") == []


def test_listed_clips_without_audio_are_left_out_and_counted(home, root):
    (root / "audio" / "train" / f"{IDS[2]}.wav").unlink()
    corpus = load_corpus("audiocaps", root)
    assert IDS[2] not in set(corpus.clips["clip"]) | set(corpus.captions["clip"])
    assert coverage(corpus).values.tolist() == [["train", 5, 6, 49274], ["validation", 3, 3, 494], ["test", 3, 3, 957]]


def test_clips_that_are_not_of_ten_seconds_are_named(home, tmp_path):
    root = dataset_layouts.audiocaps(tmp_path / "long", {"train": 6, "validation": 1, "test": 1}, 10, rate=2000)
    folder = root / "audio" / "train"
    for number, seconds in enumerate((20, 3, 10.4, 9.6)):
        dataset_layouts.sound(folder / f"{IDS[number]}.wav", 50 + number, seconds, rate=2000)
    for number, end in ((4, 34.5), (5, 50)):  # a video that ends, and a name that states what AudioCaps has not
        (folder / f"{IDS[number]}.wav").unlink()
        dataset_layouts.sound(folder / f"{IDS[number]}_30_{end}.wav", 60 + number, end - 30, rate=2000)
    with pytest.warns(UserWarning, match=f"3 of 8 files of audiocaps are too long or short, as .*{IDS[0]}.wav"):
        corpus = load_corpus("audiocaps", root)
    found = corpus.problems(audio=True)
    names = [f"{IDS[0]}.wav", f"{IDS[1]}.wav", f"{IDS[5]}_30_50.wav"]
    assert found["where"].tolist() == [str(folder / name) for name in names]
    assert found["problem"].tolist() == [f"{n}.00 s long where audiocaps states 10.00 s" for n in (20, 3, 20)]


def test_a_clip_with_two_files_is_a_problem_that_names_them(home, root):
    dataset_layouts.sound(root / "more" / f" Y{IDS[2]}_30.FLAC", 70, 0.2)
    with pytest.raises(CorpusError, match=f"clip '{IDS[2]}': its file could be 'audio/train/{IDS[2]}.wav', 'more/ Y"):
        load_corpus("audiocaps", root)
    (root / "audio" / "train" / f"{IDS[2]}.wav").unlink()
    assert len(load_corpus("audiocaps", root)) == 12


def test_a_broken_file_is_a_problem_with_its_mend(home, root):
    (root / "audio" / "train" / f"{IDS[2]}.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusError, match=f"{IDS[2]}.wav: unreadable .* fetch it again"):
        load_corpus("audiocaps", root)


def test_a_folder_without_tables_takes_those_that_were_fetched(home, root, tmp_path):
    (root / "audio").rename(tmp_path / "sounds")
    with pytest.raises(CorpusError, match="looked for audio files named by YouTube id"):
        load_corpus("audiocaps", tmp_path / "sounds")
    home.mkdir()
    root.rename(home / "audiocaps")
    assert len(load_corpus("audiocaps", tmp_path / "sounds")) == 12


def test_a_folder_without_audio_is_refused_with_what_was_found(home, root):
    moved(root, lambda clip: f"sound of {clip}.wav")
    with pytest.raises(CorpusError, match="found 'audio/', 'sound of .*--from <folder>"):
        load_corpus("audiocaps", root)


@pytest.mark.parametrize(
    "table, message",
    [
        ("file_name,caption\nDog.wav,a dog\n", "'Dog': no YouTube id with captions"),
        ("youtube_id,caption\nabcdefghijk,a dog\n", "no YouTube id with captions; give youtube_id, start_time"),
        ("file_name,caption\nYabcdefghijk.wav,a\nabcdefghijk.wav,b\n", "'abcdefghijk': listed twice"),
    ],
)
def test_a_table_of_another_form_is_an_error(home, root, table, message):
    (root / "train.csv").write_text(table)
    with pytest.raises(CorpusError) as caught:
        load_corpus("audiocaps", root)
    assert message in str(caught.value)


@pytest.mark.skipif(not MEI2022.is_dir(), reason="needs the tables of Mei et al. 2022")
def test_the_tables_of_mei_et_al_2022_are_read_as_they_are_and_as_official_ones(tmp_path):
    for short in SHORT.values():
        dataset_layouts.linked(MEI2022 / f"audiocaps_{short}.csv", tmp_path / "mei" / "csv_files" / f"{short}.csv")
    lists = audiocaps.clip_lists(tmp_path / "mei")
    assert {split: len(rows) for split, rows in lists.items()} == {"train": 49274, "validation": 494, "test": 957}
    assert {split: {len(texts) for _, texts in rows.values()} for split, rows in lists.items()} == {
        "train": {1}, "validation": {5}, "test": {5}
    }  # fmt: skip
    assert lists["validation"]["vfY_TJq7n_U"][1][0] == (
        "Rustling occurs, ducks quack and water splashes, followed by an adult female and adult male speaking and duck "
        "calls being blown"
    )
    for split, rows in lists.items():
        with open(MEI2022 / f"audiocaps_{SHORT[split]}.csv", newline="", encoding="utf-8") as file:
            assert [[f"Y{clip}.wav", *texts] for clip, (_, texts) in rows.items()] == list(csv.reader(file))[1:]
        table = [["1", clip, "0", text] for clip, (_, texts) in rows.items() for text in texts]
        header = ["audiocap_id", "youtube_id", "start_time", "caption"]
        dataset_layouts.table(tmp_path / "official" / f"{SHORT[split]}.csv", header, table)
    official = audiocaps.clip_lists(tmp_path / "official")
    assert all(
        [(clip, texts) for clip, (_, texts) in official[split].items()]
        == [(clip, texts) for clip, (_, texts) in rows.items()]
        for split, rows in lists.items()
    )


class TestFetching:
    """With programs named yt-dlp and ffmpeg that only write files."""

    @pytest.fixture
    def programs(self, root, tmp_path, monkeypatch):
        """yt-dlp that notes its arguments, and gives a sound or, for what `answer` names, a complaint."""
        (tmp_path / "bin").mkdir()
        dataset_layouts.sound(tmp_path / "sound.wav", 1, seconds=0.1, rate=32000)
        script = f"""#!/bin/sh
echo "$@" >> "{tmp_path}/calls"
for word in "$@"; do last="$word"; case "$word" in *%\\(ext\\)s) out="$word";; esac; done
answer=$(grep -F -- "${{last##*=}}" "{tmp_path}/answers" | cut -d' ' -f2-)
if [ -n "$answer" ]; then echo "ERROR: $answer" >&2; exit 1; fi
cp "{tmp_path}/sound.wav" "$(dirname "$out")/clip.wav"
"""
        for name in ("yt-dlp", "ffmpeg"):
            path = tmp_path / "bin" / name
            path.write_text(script)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (tmp_path / "answers").write_text("")
        (tmp_path / "calls").write_text("")
        monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
        for path in (root / "audio").rglob("*.wav"):
            path.unlink()
        return tmp_path

    def test_every_clip_is_fetched_once(self, home, root, programs):
        assert audiocaps.fetch(root, quiet=True) == {}
        assert load_corpus("audiocaps", root).clips["clip"].tolist() == IDS
        calls = (programs / "calls").read_text()
        assert f"https://www.youtube.com/watch?v={IDS[3]}" in calls and "--download-sections *30-40 " in calls
        audiocaps.fetch(root, quiet=True)
        assert (programs / "calls").read_text() == calls and not (root / "gone.csv").exists()

    def test_clips_that_are_gone_are_noted_and_tried_again_only_when_asked(self, home, root, programs):
        (programs / "answers").write_text(f"{IDS[0]} Video unavailable\n{IDS[7]} Private video. Sign in, if asked\n")
        audiocaps.fetch(root, quiet=True)
        assert audiocaps.lost_clips(root) == {
            IDS[0]: "ERROR: Video unavailable",
            IDS[7]: "ERROR: Private video. Sign in, if asked",
        }
        assert len(load_corpus("audiocaps", root)) == 10
        (programs / "answers").write_text("")
        audiocaps.fetch(root, quiet=True)
        assert len(load_corpus("audiocaps", root)) == 10
        audiocaps.fetch(root, again=True, quiet=True)
        assert len(load_corpus("audiocaps", root)) == 12 and audiocaps.lost_clips(root) == {}

    def test_other_failures_are_returned_and_tried_again(self, home, root, programs):
        limited = "Video unavailable. This content isn't available, try again later."
        (programs / "answers").write_text(f"{IDS[4]} HTTP Error 503\n{IDS[5]} {limited}\n")
        expected = {IDS[4]: "ERROR: HTTP Error 503", IDS[5]: f"ERROR: {limited}"}
        assert audiocaps.fetch(root, quiet=True) == expected and audiocaps.lost_clips(root) == {}
        (programs / "answers").write_text("")
        assert audiocaps.fetch(root, quiet=True) == {} and len(load_corpus("audiocaps", root)) == 12

    def test_a_row_of_failures_that_are_not_the_clips_fault_stops_it(self, home, root, programs):
        (programs / "answers").write_text("".join(f"{clip} confirm you are not a bot\n" for clip in IDS))
        with pytest.raises(download.DownloadError, match="10 failures in a row, the last: ERROR: confirm you"):
            audiocaps.fetch(root, quiet=True)
        assert not (root / "gone.csv").exists()

    def test_a_file_that_is_no_sound_is_a_failure_and_does_not_stay(self, home, root, programs):
        (programs / "sound.wav").write_bytes(b"RIFF")
        with pytest.raises(download.DownloadError, match="left no usable file: unreadable"):
            audiocaps.fetch(root, quiet=True)
        assert not list((root / "audio").rglob("*.wav"))

    def test_the_whole_video_in_place_of_ten_seconds_is_a_failure(self, home, root, programs):
        dataset_layouts.sound(programs / "sound.wav", 1, seconds=12, rate=2000)
        with pytest.raises(download.DownloadError, match="yt-dlp left 12.0 s of the video where 10 s were asked for"):
            audiocaps.fetch(root, quiet=True)
        assert not list((root / "audio").rglob("*.wav"))

    def test_without_the_programs_it_says_how_to_get_them(self, home, root, programs, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(download.DownloadError, match="no yt-dlp and no ffmpeg found; install .* --from <folder>"):
            audiocaps.fetch(root)
