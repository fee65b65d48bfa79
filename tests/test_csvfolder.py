import pickle
import time
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile

from atr.corpora import audio, csvfolder, load_corpus
from atr.corpora.containers import AudioError
from atr.corpora.corpus import CorpusError
from atr.encoders import inputs
from atr.system import atomic

RATE = 8000


def sound(path, seconds=1.0, hertz=300.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE), RATE)


@pytest.fixture
def root(tmp_path):
    """Five one-second sounds, a.wav to e.wav, all different."""
    for k, letter in enumerate("abcde"):
        sound(tmp_path / f"{letter}.wav", hertz=300.0 + 50 * k)
    return tmp_path


SPLITS = [("a", "train"), ("b", "train"), ("c", "train"), ("d", "validation"), ("e", "test")]
HEADER = "file_name,split,caption\n"
SOUND = HEADER + "a.wav,train,a dog\nb.wav,train,rain\nc.wav,train,wind\nd.wav,validation,a bell\ne.wav,test,a horn\n"


def write(root, text, name="captions.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))


def listed(root, **options):
    found = load_corpus("csv", root, check=False, **options).problems(audio=True)
    return [f"{line.where}: {line.problem}; {line.mend}" for line in found.itertuples()]


def test_one_caption_a_file(root):
    write(root, SOUND)
    corpus = load_corpus("csv", root)
    assert corpus.clips["clip"].tolist() == ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav"]
    assert corpus.clips["split"].tolist() == ["train"] * 3 + ["validation", "test"]
    assert corpus.clips["duration"].tolist() == [1.0] * 5 and corpus.clips["digest"].nunique() == 5
    assert corpus.captions["caption"].tolist() == ["a dog", "rain", "wind", "a bell", "a horn"]
    assert corpus.events.empty and corpus.problems(audio=True).empty


def test_several_captions_in_numbered_columns(root):
    write(root, "file_name,split,caption_1,caption_2\n" + "".join(f"{c}.wav,{s},one {c},two {c}\n" for c, s in SPLITS))
    captions = load_corpus("csv", root).split("train").captions
    assert captions["clip"].tolist() == ["a.wav", "a.wav", "b.wav", "b.wav", "c.wav", "c.wav"]
    assert captions["caption"].tolist()[:2] == ["one a", "two a"]


def test_several_rows_a_file_are_brought_together_in_their_order(root):
    write(root, SOUND + "a.wav,train,a bark\n./a.wav,train,a growl\n")
    corpus = load_corpus("csv", root)
    assert len(corpus) == 5
    assert corpus.captions["caption"].tolist()[:4] == ["a dog", "a bark", "a growl", "rain"]


def test_the_audio_may_lie_in_a_folder_below(root):
    for letter in "abcde":
        (root / "audio" / "deep").mkdir(parents=True, exist_ok=True)
        (root / f"{letter}.wav").rename(root / "audio" / "deep" / f"{letter}.wav")
    write(root, SOUND.replace("\n", "\ndeep/").removesuffix("deep/"), "table.csv")
    corpus = load_corpus("csv", root, table="table.csv", audio="audio")
    waveform, rate = pickle.loads(pickle.dumps(corpus.read))("deep/a.wav")
    assert len(waveform) == rate == RATE


@pytest.mark.parametrize(
    "written, understood",
    [
        (("train", "val", "eval"), ("train", "validation", "test")),
        (("Training", "valid", "Testing"), ("train", "validation", "test")),
        (("development", "validation", "evaluation"), ("train", "validation", "test")),
        (("dev", "val", "eval"), ("train", "validation", "test")),
        (("train", "dev", "test"), ("train", "validation", "test")),
    ],
)
def test_the_usual_names_of_splits_are_understood(root, written, understood):
    rows = zip("abc", written, strict=True)
    write(root, HEADER + "".join(f"{letter}.wav,{split},a sound\n" for letter, split in rows))
    assert load_corpus("csv", root).clips["split"].tolist() == list(understood)


def test_without_a_split_column_the_file_names_hash_decides(tmp_path):
    names = [f"{k}.wav" for k in range(60)]
    for k, name in enumerate(names):
        sound(tmp_path / name, seconds=0.2, hertz=100.0 + 50 * k)
    write(tmp_path, "file_name,caption\n" + "".join(f"{name},sound {name}\n" for name in names))
    splits = load_corpus("csv", tmp_path).clips.set_index("clip")["split"]
    assert splits.value_counts().to_dict() == {"train": 49, "validation": 6, "test": 5}
    write(tmp_path, "file_name,caption\n" + "".join(f"{name},sound {name}\n" for name in reversed(names[:50])))
    fewer = load_corpus("csv", tmp_path).clips.set_index("clip")["split"]
    assert (fewer == splits[fewer.index]).all()


def test_too_few_files_to_split_by_hash_is_a_problem(root):
    write(root, "file_name,caption\na.wav,a dog\nb.wav,rain\n")
    assert any("leave none for test; add a column 'split'" in line for line in listed(root))


def test_known_events_are_read_and_may_cover_more_files(root):
    write(root, SOUND.replace("e.wav,test,a horn\n", ""))
    write(root, "file_name,event,onset,offset\n./a.wav,dog,0.1,0.9\ne.wav,horn,0,1\n", "events.csv")
    assert load_corpus("csv", root).events.to_dict("records") == [
        {"clip": "a.wav", "event": "dog", "onset": 0.1, "offset": 0.9}
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_reads_with_and_without_a_byte_order_mark(root, encoding):
    write(root, SOUND.replace("a dog", "ein Käuzchen"), encoding=encoding)
    assert load_corpus("csv", root).captions["caption"][0] == "ein Käuzchen"


FATAL = {
    "another encoding": (SOUND.replace(",rain", ",Käuzchen").encode("latin-1"), "captions.csv, line 3", "0xe4"),
    "two bytes a letter": (SOUND.encode("utf-16"), "captions.csv, line 1", "byte 0 of the file, 0xff"),
    "zero bytes": (SOUND.encode("utf-16-le"), "captions.csv, line 1", "0x00"),
    "an open quote": (SOUND.replace(",rain", ',"rain').encode(), "captions.csv, line 3", "no valid CSV"),
    "no file name": (
        b"name,caption\na.wav,a dog\n",
        "captions.csv",
        "no column 'file_name' (the header has 'name', 'c",
    ),
    "semicolons": (b"file_name;caption\na.wav;a dog\n", "captions.csv", "no column 'file_name'"),
    "no caption": (b"file_name,text\na.wav,a dog\n", "captions.csv", "no caption column"),
    "a split in capitals": (b"file_name,caption,Split\n", "captions.csv", "column 'Split' would go unread"),
    "a caption in capitals": (b"file_name,caption_1,Caption_2\n", "captions.csv", "column 'Caption_2' would go unread"),
    "both forms": (b"file_name,caption,caption_1\n", "captions.csv", "both 'caption' and numbered"),
    "a column twice": (b"file_name,caption_1,caption_1\n", "captions.csv", "'caption_1' is there twice"),
    "an empty file": (b"", "captions.csv", "no column 'file_name'"),
    "20,000 columns": (
        ("file_name," + ",".join(f"caption_{k}" for k in range(20_000)) + "\n" + "a.wav" + ",x" * 20_000).encode(),
        "captions.csv",
        "20,001 columns, more than 1,000",
    ),
    "one line": (b"x" * 20_000_000, "captions.csv, line 1", "a line of more than 1,048,576 characters"),
    "a sound": (b"RIFF\x24\x00\x00\x00WAVEfmt \xff\xfe", "captions.csv, line 1", "is no UTF-8 text"),
    "tabs": (b"file_name\tcaption\na.wav\ta dog\n", "captions.csv", "no column 'file_name'"),
    "a late byte": (
        SOUND.encode() + b"a.wav,train,dog\n" * 9_999 + b"a.wav,train,\xe4\n",
        "captions.csv, line 10006",
        f"byte {len(SOUND) + 16 * 9_999 + 12} of the file, 0xe4",
    ),
}


@pytest.mark.parametrize("fault", FATAL)
def test_a_table_that_cannot_be_read_is_an_error_with_place_and_mend(root, fault):
    content, where, problem = FATAL[fault]
    (root / "captions.csv").write_bytes(content)
    started = time.process_time()
    with pytest.raises(CorpusError) as caught:
        load_corpus("csv", root)
    assert time.process_time() - started < 2 and len(str(caught.value)) < 1_000
    first = caught.value.problems.iloc[0]
    assert first["where"] == where and problem in first["problem"] and first["mend"]


def test_several_unreadable_tables_are_listed_together(root):
    write(root, "file_name,event\n", "events.csv")
    with pytest.raises(CorpusError) as caught:
        load_corpus("csv", root, audio="sounds")
    where = caught.value.problems["where"].tolist()
    assert where == [str(root / "sounds"), str(root / "captions.csv"), "events.csv", "events.csv"]


ROWS = {
    "z.wav,train,a cat": "line 7, file_name: {root}/z.wav: no such file; restore it",
    "../a.wav,train,a cat": "line 7, file_name: '../a.wav' lies outside the audio folder; give a path below it",
    "/etc/a.wav,train,a cat": "line 7, file_name: '/etc/a.wav' lies outside",
    "C:\\a.wav,train,a cat": "line 7, file_name: 'C:\\\\a.wav' lies outside",
    ",train,a cat": "line 7, file_name: no file name; write it",
    "a.wav,trian,a cat": "line 7, split: unknown split 'trian'; use one of train, validation, test",
    "a.wav,train,": "line 7, caption: empty caption; write one",
    "a.wav,train,a dog": "line 7: the same row as line 2; remove one",
    "./a.wav,train,a dog": "line 7, caption: caption as in line 2, of the same file: 'a dog'; keep it once",
    "a.wav,train,a cat, purring": "line 7: 4 fields where the header has 3; put quotes around",
    "a.wav,test,a cat": "line 2, split: 'a.wav' is in 2 splits (lines 2, 7); keep it in one",
    "copy.wav,test,a cat": "line 7, file_name: 'copy.wav' holds the same bytes as 'a.wav', which is in another split",
    "text.wav,train,a cat": "line 7, file_name: {root}/text.wav: unreadable",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_with_a_problem_is_listed_with_its_line_and_cleaned_away(root, row):
    (root / "copy.wav").write_bytes((root / "a.wav").read_bytes())
    (root / "text.wav").write_text("no audio")
    write(root, SOUND + row + "\n")
    assert [line for line in listed(root) if line.startswith("captions.csv, " + ROWS[row].format(root=root))], listed(
        root
    )
    kept = csvfolder.clean_table(root)
    expected = SOUND if row != "a.wav,test,a cat" else SOUND.replace("a.wav,train,a dog\n", "")
    assert kept.to_csv(index=False) == expected
    write(root, kept.to_csv(index=False))
    assert listed(root) == []


def test_a_caption_twice_in_one_row_is_a_problem(root):
    write(root, "file_name,split,caption_1,caption_2\na.wav,train,a dog,a dog\n")
    assert listed(root)[0].startswith("captions.csv, line 2, caption_2: caption as in line 2")


def test_lines_are_counted_over_quoted_line_breaks_and_blank_lines(root):
    write(root, SOUND.replace("a dog", '"a\ndog"') + "\n\nz.wav,train,a cat\n")
    assert listed(root)[0].startswith("captions.csv, line 10, file_name: ")


def test_all_problems_of_all_files_are_listed_at_once(root):
    soundfile.write(root / "a.wav", np.zeros(RATE), RATE)
    write(root, SOUND + "z.wav,train,a cat\nb.wav,train,\n")
    write(
        root,
        "file_name,event,onset,offset\nb.wav,,0,1\nb.wav,rain,0.5,1.5\nc.wav,wind,x,1\ny.wav,cat,0,1\n",
        "events.csv",
    )
    starts = [
        "captions.csv, line 8, caption: empty",
        f"captions.csv, line 7, file_name: {root}/z.wav: no such file",
        "events.csv, line 2, event: no event",
        "events.csv, line 3, onset, offset: from '0.5' to '1.5' s; give 0 <= onset < offset <= 1.00",
        "events.csv, line 4, onset, offset: from 'x' to '1' s",
        "events.csv, line 5, file_name: no file 'y.wav'",
        f"{root}/a.wav: silent",
    ]
    found = listed(root)
    assert len(found) == len(starts) and all(map(str.startswith, found, starts)), found
    with pytest.raises(CorpusError, match="has 6 problem"):
        load_corpus("csv", root)
    assert csvfolder.clean_table(root)["file_name"].tolist() == ["b.wav", "c.wav", "d.wav", "e.wav"]


def test_the_digest_follows_the_bytes_and_the_fingerprint_follows_the_digest(root):
    write(root, SOUND)
    before = load_corpus("csv", root)
    sound(root / "a.wav", hertz=1000.0)
    after = load_corpus("csv", root)
    assert before.fingerprint != after.fingerprint
    assert (before.clips["digest"] == after.clips["digest"]).tolist() == [False] + [True] * 4


def test_the_tables_hold_strings_and_numbers(root):
    write(root, SOUND)
    corpus = load_corpus("csv", root)
    assert isinstance(corpus.clips["clip"].dtype, pd.StringDtype) and corpus.clips["duration"].dtype == np.float64
    assert isinstance(corpus.captions["caption"].dtype, pd.StringDtype)


ODD = [
    "a\rb",
    "NA",
    "null",
    "None",
    "nan",
    " blanks ",
    'a "quote", a comma',
    "two\r\nlines",
    "\ufeffmark",
    "é\u0301",
    "=",
]


def test_a_clean_table_has_the_cells_of_the_rows_that_stay(root):
    rows = [["a.wav", "train", text] for text in ODD]
    rows += [["b.wav", "train", "rain"], ["d.wav", "validation", "a bell"], ["e.wav", "test", "a horn"]]
    cells = [["file_name", "split", "caption"], *rows, ["z.wav", "train", "no file"]]
    quoted = ([f'"{cell}"' for cell in (one.replace('"', '""') for one in row)] for row in cells)
    write(root, "".join(",".join(row) + "\n" for row in quoted))
    atomic.write_csv(csvfolder.clean_table(root), root / "clean.csv")
    assert csvfolder.clean_table(root, table="clean.csv").to_numpy().tolist() == rows
    corpus = load_corpus("csv", root, table="clean.csv")
    assert corpus.captions["caption"].tolist()[: len(ODD)] == [text.strip() for text in ODD]


NAMES = {
    "Unicode form": ("Caf\u00e9.wav", "Cafe\u0301.wav"),
    "outer blanks on disk": ("dog.wav", " dog .wav"),
    "outer blanks in the table": ('" dog .wav"', "dog.wav"),
    "no-break space": ("big dog.wav", "big\u00a0dog.wav"),
    "case": ("Dog.wav", "dog.WAV"),
    "folder": ("Dogs/a dog.wav", "dogs/a  dog.wav"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_means_the_one_file_that_is_spelt_alike(root, case):
    written, there = NAMES[case]
    sound(root / there, hertz=700.0)
    write(root, SOUND + f"{written},train,a hound\n")
    corpus = load_corpus("csv", root)
    assert corpus.clips["clip"].tolist()[-1] == written.strip('"').strip()
    np.testing.assert_array_equal(corpus.read(corpus.clips["clip"].iloc[-1])[0], audio.read(root / there)[0])


def test_the_exact_name_comes_first_and_blanks_belong_to_it(root):
    for k, name in enumerate((" dog.wav", "dog.wav", "Dog.wav", unicodedata.normalize("NFD", "é.wav"), "é.wav")):
        sound(root / name, hertz=700.0 + 50 * k)
    write(root, SOUND + '" dog.wav",train,one\ndog.wav,train,two\nDog.wav,train,three\né.wav,train,four\n')
    corpus = load_corpus("csv", root)
    assert corpus.clips["clip"].tolist()[5:] == [" dog.wav", "dog.wav", "Dog.wav", "é.wav"]
    for name in corpus.clips["clip"]:
        np.testing.assert_array_equal(corpus.read(name)[0], audio.read(root / name)[0])


def test_names_that_could_mean_several_files_and_files_that_several_names_could_mean_are_problems(root):
    for k, name in enumerate(("dog.wav", "Dog.wav", "cat .wav")):
        sound(root / name, hertz=700.0 + 50 * k)
    write(root, SOUND + "DOG.wav,train,one\ncat.wav,train,two\nCat.wav,train,three\n")
    found = listed(root)
    assert len(found) == 3 and found[0].startswith(
        "captions.csv, line 7, file_name: its file could be 'Dog.wav', 'dog.wav'; give one file exactly the name"
    )
    assert all("its file could be 'cat .wav', as another name's could" in line for line in found[1:])


def test_events_are_joined_by_names_that_are_spelt_alike(root):
    write(root, SOUND)
    write(root, "file_name,event,onset,offset\nA.WAV,dog,0.1,0.9\n", "events.csv")
    assert load_corpus("csv", root).events["clip"].tolist() == ["a.wav"]


def test_a_file_that_changes_after_the_check_is_refused_and_nothing_is_kept_of_it(root):
    write(root, SOUND)
    corpus = load_corpus("csv", root)
    before = (root / "b.wav").read_bytes()
    sound(root / "b.wav", hertz=1000.0)
    with pytest.raises(AudioError, match="b.wav: changed since the corpus was loaded; .* run again"):
        inputs.waveforms(corpus.split("train"), RATE, quiet=True)
    problems = corpus.problems(audio=True)
    assert problems["where"].tolist() == [str(root / "b.wav")] and "run again" in problems["mend"][0]
    (root / "b.wav").write_bytes(before)
    expected = audio.read(root / "b.wav")[0]
    assert np.abs(inputs.waveforms(corpus.split("train"), RATE, quiet=True)[1] / 32_767 - expected).max() < 1e-3


def test_folders_and_links_to_nothing_in_the_place_of_files_are_problems(root):
    (root / "x.wav").mkdir()
    (root / "y.wav").symlink_to(root / "nowhere.wav")
    write(root, SOUND + "x.wav,train,a cat\ny.wav,train,a cow\n")
    found = listed(root)
    assert found[0] == f"captions.csv, line 7, file_name: {root}/x.wav: a folder, not a file; rename it, or name a file"
    assert found[1].startswith(f"captions.csv, line 8, file_name: {root}/y.wav: no such file")


def test_copies_share_the_split_that_is_drawn_for_them(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{k}.wav" for k in range(40)]
    for name in names:
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, RATE), RATE)
    copied = [f"copy{k}.wav" for k in range(20)]
    for name in copied[:10]:
        (tmp_path / name).write_bytes((tmp_path / "7.wav").read_bytes())
    wave, _ = soundfile.read(tmp_path / "7.wav")
    for k, name in enumerate(copied[10:]):
        soundfile.write(tmp_path / name, wave * (1 + k / 20), RATE)
    write(tmp_path, "file_name,caption\n" + "".join(f"{name},sound {name}\n" for name in names + copied))
    corpus = load_corpus("csv", tmp_path)
    splits = corpus.clips.set_index("clip")["split"]
    assert splits[["7.wav", *copied]].nunique() == 1
    assert {csvfolder._split_of_name(name) for name in copied} == set(splits)  # without that, they would be anywhere
    others = [name for name in names if name != "7.wav"]
    assert splits[others].tolist() == [csvfolder._split_of_name(name) for name in others]
    assert corpus.source.endswith("; 20 copies (1 recordings), each in the split of the first")


def test_where_splits_are_drawn_a_file_that_cannot_be_decoded_is_a_problem_at_once(tmp_path):
    names = [f"{k}.wav" for k in range(40)]
    for k, name in enumerate(names):
        sound(tmp_path / name, hertz=100.0 + 50 * k)
    soundfile.write(tmp_path / "5.wav", np.zeros(RATE), RATE)
    write(tmp_path, "file_name,caption\n" + "".join(f"{name},sound {name}\n" for name in names))
    with pytest.raises(CorpusError, match="has 1 problem.*\n.*line 7, file_name: .*5.wav: silent"):
        load_corpus("csv", tmp_path)


def test_a_long_table_takes_time_by_its_length(root):
    def seconds(rows):
        lines = (f"{'abcde'[k % 5]}.wav,{SPLITS[k % 5][1]},caption {k}\n" for k in range(rows))
        write(root, HEADER + "".join(lines))
        started = time.process_time()
        assert len(load_corpus("csv", root).captions) == rows
        return time.process_time() - started

    assert seconds(40_000) < 16 * seconds(10_000)
