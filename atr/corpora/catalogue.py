"""Obtaining the papers' data sets: what there is, what is here, fetching it, or taking it from a folder."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from atr.corpora import audiocaps, clotho, files, wavcaps
from atr.corpora.corpus import SPLITS, Corpus
from atr.corpora.scenes import clipfolder
from atr.system import atomic, download, places
from atr.system.download import File
from atr.system.units import human

ARCHIVES = tuple(download.UNPACK)  # their suffixes


class Counts(NamedTuple):
    """What a folder holds of a data set: clips by split beside the published ones, and what is wrong with it."""

    clips: pd.DataFrame
    problems: list[str]


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    files: what is downloaded; archives are unpacked beside, each as a folder of its name without suffix, and then
    deleted. download, disk: bytes, about: what is fetched in all, and what it takes on disk afterwards.
    count: recognises a folder, and raises what the loaders raise.
    """

    title: str
    files: tuple[File, ...]
    download: float
    disk: float
    licence: str
    source: str
    count: Callable[[Path], Counts]


def _count(corpus: Corpus) -> Counts:
    problems = [": ".join(row[:2]) + f"; {row[2]}" for row in corpus.problems().itertuples(index=False)]
    return Counts(files.coverage(corpus), problems)


def _count_esc50(folder: Path) -> Counts:
    root = esc50(folder)
    split_of = {path: split for _, split, path in clipfolder.esc50(root)}
    missing = [path for path in split_of if not (root / path).is_file()]
    total, absent = Counter(split_of.values()), Counter(split_of[path] for path in missing)
    table = [(split, total[split] - absent[split], total[split], {"train": 1200}.get(split, 400)) for split in SPLITS]
    clips = pd.DataFrame(table, columns=["split", "clips here", "clips in the list", "clips in the paper"])
    return Counts(clips, [f"{root / path}: no such file; run: atr data esc50" for path in missing])


def _count_dcase2022(folder: Path) -> Counts:
    content = clotho.evaluation(folder)
    columns = {"clips here": len(content.clips), "queries here": len(content.queries), "published of each": 1000}
    return Counts(pd.DataFrame([columns]), [])


def _count_dcase2025(folder: Path) -> Counts:
    answers = clotho.answers(folder)
    pairs = sum(map(len, answers.values()))
    columns = {"queries here": len(answers), "published": 1037, "pairs here": pairs, "pairs published": 3116}
    return Counts(pd.DataFrame([columns]), [])


def _count_audiocaps2(folder: Path) -> Counts:
    lists = audiocaps.clip_lists(folder)
    captions = {split: sum(len(texts) for _, texts in lists[split].values()) for split in SPLITS}
    columns = {
        "split": SPLITS,
        "clips here": [len(lists[split]) for split in SPLITS],
        "captions here": list(captions.values()),
        "captions published": [91_256, 2_475, 4_875],
    }
    return Counts(pd.DataFrame(columns), [])


def _count_phi4(folder: Path) -> Counts:
    rows = clotho.phi4(folder / PHI4.name)
    columns = {"clips here": len(rows), "captions here": 10 * len(rows), "clips in the thesis": 3840}
    return Counts(pd.DataFrame([columns]), [])


def esc50(folder: Path | None = None) -> Path:
    """The folder of ESC-50 that holds audio/ and meta/."""
    folder = files.locate("esc50", folder)
    tables = [*folder.glob("meta/esc50.csv"), *folder.glob("*/meta/esc50.csv"), *folder.glob("*/*/meta/esc50.csv")]
    if not tables:
        raise files.unknown_layout("esc50", folder, "meta/esc50.csv and audio/, here or in a folder below")
    return tables[0].parent.parent


def _files(base: str, table: str) -> tuple[File, ...]:
    """Files from lines of: path below `base`, bytes ("-": not published), MD5, SHA-256 or, in git, of its blob."""
    rows = [line.split() for line in table.strip().splitlines()]
    kinds = {32: "md5", 40: "git", 64: "sha256"}
    return tuple(
        File(Path(path).name, f"{base}/{path}", None if size == "-" else int(size), f"{kinds[len(digest)]}:{digest}")
        for path, size, digest in rows
    )


CLOTHO = _files(
    "https://zenodo.org/records/4783391/files",
    """
    clotho_captions_development.csv 1336762 d4090b39ce9f2491908eebf4d5b09bae
    clotho_captions_validation.csv 367649 5879e023032b22a2c930aaa0528bead4
    clotho_captions_evaluation.csv - 1b16b9e57cf7bdb7f13a13802aeb57e2
    clotho_metadata_development.csv 830797 170d20935ecfdf161ce1bb154118cda5
    clotho_metadata_validation.csv 224803 2e010427c56b1ce6008b0f03f41048ce
    clotho_metadata_evaluation.csv - 13946f054d4e1bf48079813aac61bf77
    clotho_audio_evaluation.7z - 4569624ccadf96223f19cb59fe4f849f
    clotho_audio_validation.7z 1260701425 7dba730be08bada48bd15dc4e668df59
    clotho_audio_development.7z 4541582263 c8b05bc7acdb13895bb3c6a29608667e
    """,
)
DCASE2022 = _files(
    "https://zenodo.org/records/6590983/files",
    """
    retrieval_captions.csv - f9e810118be00c64ea8cd7557816d4fe
    retrieval_audio_metadata.csv - 1301db07acbf1e4fabc467eb54e0d353
    retrieval_audio.7z - 24102395fd757c462421a483fba5c407
    """,
)
AUDIOCAPS = _files(
    "https://raw.githubusercontent.com/cdjkim/audiocaps/d004db3ea1b01cf4fd0347dd8d27db90cadc8809/dataset",
    """
    train.csv 3576723 c0c5223db682b3bf724ce7e7ce58d5b36929f74572e8526a7211f92d2eef7c8e
    val.csv 171918 dab1c96641d5f3053ddb99dca3949450da9a75737bda53e11cc0aa8b102be0c3
    test.csv 402246 b91c4b7ded2f4f6e7db5b9c4983dc1e1dca3d556f505b61e3fd65cac7e1c638a
    """,
)
AUDIOCAPS2 = _files(
    "https://raw.githubusercontent.com/cdjkim/audiocaps/d004db3ea1b01cf4fd0347dd8d27db90cadc8809/dataset2.0",
    """
    train.csv - be6e5492dda2de6a784bf227febf3b09a7a8a367
    val.csv 169508 dfdd0f83c70fb818fbb86dcba42754abfb97f7774d811fff91a1c89d84d868c5
    test.csv 397498 365c8a8a71c9070a8d5dba5dd44f3a781f906632a49cb82b38bebaaa8f3c5ccb
    """,
)
WAVCAPS = _files(
    "https://huggingface.co/datasets/cvssp/WavCaps/resolve/0930ec11ded28fa0eaa910fde2f6fc3538acbeac/json_files",
    """
    AudioSet_SL/as_final.json 15341826 c26e4c7f1fd00f346b54b7808c0d90c3465a2d98469023a8ad2735b9c9d8d4f3
    BBC_Sound_Effects/bbc_final.json 11670806 151c37b00aa0823a697fbc8b24b124bef2c2654a5165ed4245addf7a0388f657
    FreeSound/fsd_final.json 147300685 4499ada1a7a76666695d880feb298f557efb3aa8af3b57fd9b713c75319ff53f
    SoundBible/sb_final.json 469675 c64329d13c58322d932a7e802c3f4b95d1fcd2ba0e52083cecb35a41b00f6a1c
    blacklist/blacklist_exclude_all_ac.json 1525390 ab53786c5d0a0fe174013395cae46dfcec8676ba71c8539605691290b63b4803
    """,
)
ESC50 = File(  # the newest state of the repository
    "ESC-50.zip",
    "https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip",
    645832161,
    "sha256:661183a6f53ef04f12c9bd618fed0ddc1713280d6c94a5a5431e844ba6f6a21f",
)
PHI4 = File(
    clotho.PHI4,
    "https://raw.githubusercontent.com/timoniko/PR-Text-To-Audio-Retrieval/e7903b4cceec011a6b93b07f73e052f52bd519a0"
    f"/clotho_v2/{clotho.PHI4}",
    2711929,
    "sha256:06cb9e044289723c708ffa7f7b509c3c8e924ea8d9f6a8c6da144dc0623dd273",
)
DCASE2025 = _files(
    "https://raw.githubusercontent.com/CPJKU/dcase2025_task6_baseline/c78422fcbed579877919620a30075baccf82bf2b/resources",
    "metadata_eval.csv 160363 b89605991d1f3018088d5ce8619b7da8fe5e52c9cd576394977f141515f7fc65",
)
DATASETS = {
    "clotho": DataSet(
        "Clotho v2.1: 5,929 Freesound clips of 15 to 30 s, five captions each",
        CLOTHO,
        7.0e9,
        11.8e9,
        "audio: each file's Freesound licence (metadata tables); captions: Tampere University, non-commercial",
        "https://zenodo.org/records/4783391",
        lambda folder: _count(clotho.load(folder)),
    ),
    "audiocaps": DataSet(
        "AudioCaps v1: 51,308 YouTube clips of 10 s, one caption (training) or five",
        AUDIOCAPS,
        8e9,
        33e9,
        "captions: MIT; audio: its owners' rights and YouTube's terms",
        "https://github.com/cdjkim/audiocaps",
        lambda folder: _count(audiocaps.load(folder)),
    ),
    "audiocaps2": DataSet(
        "AudioCaps 2.0, its lists: 91,256 captions for training; those of v1's clips corrected; without audio",
        AUDIOCAPS2,
        8e6,
        8e6,
        "captions: MIT",
        "https://github.com/cdjkim/audiocaps",
        _count_audiocaps2,
    ),
    "wavcaps": DataSet(
        "WavCaps: 403,050 clips of four sources, one generated caption each; optional, for pre-training",
        WAVCAPS,
        0.18e9,
        0.18e9,
        "CC BY 4.0, academic use only; audio: its sources' terms",
        "https://huggingface.co/datasets/cvssp/WavCaps",
        lambda folder: _count(wavcaps.load(folder)),
    ),
    "esc50": DataSet(
        "ESC-50: 2,000 labelled recordings of 5 s, for profile esc50",
        (ESC50,),
        0.65e9,
        0.9e9,
        "CC BY-NC 3.0; its subset ESC-10: CC BY 3.0",
        "https://github.com/karolpiczak/ESC-50",
        _count_esc50,
    ),
    "dcase2022": DataSet(
        "DCASE 2022 task 6b evaluation: 1,000 clips and 1,000 queries without published answers",
        DCASE2022,
        1.2e9,
        2.0e9,
        "audio: each file's Freesound licence; captions: Tampere University, non-commercial",
        "https://zenodo.org/records/6590983",
        _count_dcase2022,
    ),
    "dcase2025": DataSet(
        "DCASE 2025 task 6: which clips of Clotho's evaluation split answer 1,037 of its captions, without audio",
        DCASE2025,
        160e3,
        160e3,
        "none is stated; captions: Tampere University, non-commercial",
        "https://github.com/CPJKU/dcase2025_task6_baseline",
        _count_dcase2025,
    ),
    "phi4": DataSet(
        "Captions of Clotho's training clips, five by people and five by phi-4 (Tymofieiev 2025), without audio",
        (PHI4,),
        2.7e6,
        2.7e6,
        "Clotho's captions: Tampere University, non-commercial; for the generated ones none is stated",
        "https://github.com/timoniko/PR-Text-To-Audio-Retrieval",
        _count_phi4,
    ),
}


def state(name: str) -> str:
    """How much of a data set is here: absent, partial, ready (with the folder where one is recorded) or unusable."""
    home = places.home() / name
    try:
        if files.location(name).exists():
            return f"ready, in {files.locate(name, None)}"
        if all(_result(home, file).exists() for file in DATASETS[name].files) and _has_audio(name):
            return "ready"
    except (ValueError, OSError) as error:
        return f"unusable: {error}"
    return "partial" if home.is_dir() and any(home.iterdir()) else "absent"


def _result(home: Path, file: File) -> Path:
    """What remains of a file: itself, or the folder that it was unpacked as."""
    return home / (Path(file.name).stem if file.name.endswith(ARCHIVES) else file.name)


def _has_audio(name: str) -> bool:
    """Whether the audio that does not come with the files is here."""
    home = places.home() / name
    if name == "audiocaps":
        return not audiocaps.clips_to_fetch(home)
    return name != "wavcaps" or bool(wavcaps.sounds(home))


def folder(name: str) -> Path:
    """Where a data set lies; FileNotFoundError if nowhere. ESC-50's is what ATR_CLIPS and `make study CLIPS=` take."""
    return esc50() if name == "esc50" else files.locate(name, None)


def announcement(name: str) -> str:
    """What `obtain` will do, in words: how much there is to fetch, where it goes, under which licence."""
    set_, home = DATASETS[name], places.home() / name
    how = {
        "audiocaps": "; audio by yt-dlp and ffmpeg",
        "wavcaps": "; the lists alone, since the audio takes commands of your own, which are printed then",
    }
    biggest = max((file.size or 0 for file in set_.files if file.name.endswith(ARCHIVES)), default=0)
    spare = f", and {human(biggest)} more while it is unpacked" if biggest else ""
    return (
        f"{name}: {set_.title}\n"
        f"download: about {human(set_.download)}{how.get(name, '')}\n"
        f"on disk: about {human(set_.disk)}{spare}, in {home}\n"
        f"licence: {set_.licence}\n"
        f"source: {set_.source}\n"
        f"here: {state(name)}"
    )


def obtain(name: str, workers: int = 4, again: bool = False, quiet: bool = False) -> tuple[str, Counts | None]:
    """Fetch, verify and unpack into `home()/<name>` what is not there yet, and count what is there then.

    A recorded folder is counted as it is. Interrupt it whenever you like: the next call continues.
    workers, again: see `audiocaps.fetch`. Returns what is left to say, and no counts where the audio is left to do by
    hand. Raises DownloadError, and what the loaders raise.
    """
    set_, home, left = DATASETS[name], places.home() / name, ""
    if not files.location(name).exists():
        for file in set_.files:
            if file.name.endswith(ARCHIVES) and not _result(home, file).is_dir():
                archive = download.fetch(file, home, quiet)
                download.extract(archive, _result(home, file), quiet)
                archive.unlink()
            elif not file.name.endswith(ARCHIVES):
                download.fetch(file, home, quiet)
        if name == "audiocaps":
            failed = audiocaps.fetch(home, workers, again, quiet)
            if lost := len(audiocaps.lost_clips(home)):
                left = f"{lost} clips are gone from YouTube: {home / 'gone.csv'}; --again tries them again. "
            if failed:
                clip, reason = next(iter(failed.items()))
                left += f"{len(failed)} clips failed, such as {clip} ({reason}); the same command tries them again."
        if name == "wavcaps" and not _has_audio(name):
            return WAVCAPS_AUDIO.format(home=home), None
    return left, set_.count(files.locate(name, None))


WAVCAPS_AUDIO = """The lists are in {home}. The audio, about 0.8 TB, is published as split zip archives, which Python
cannot read; with zip and unzip:
  hf download cvssp/WavCaps --repo-type dataset --include "Zip_files/*" --local-dir "{home}"
  cd "{home}"
  for source in AudioSet_SL BBC_Sound_Effects FreeSound; do
    zip -s 0 Zip_files/$source/$source.zip --out whole.zip && unzip -j whole.zip -d $source && rm whole.zip
  done
  unzip -j Zip_files/SoundBible/SoundBible.zip -d SoundBible
or name a folder that holds it: atr data wavcaps --from <folder>"""


def adopt(name: str, source: str | PathLike[str], quiet: bool = False) -> Counts:
    """Take a data set from a folder that holds it: `home()/<name>/location.json` names it, nothing is copied.

    A folder of the published archives is verified and unpacked into `home()/<name>` instead. Raises CorpusError for a
    folder that is not recognised, with what was looked for and what was found, and DownloadError for a wrong archive.
    """
    set_, home, folder = DATASETS[name], places.home() / name, Path(source).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: no folder {folder}")
    if any((folder / file.name).is_file() for file in set_.files if file.name.endswith(ARCHIVES)):
        missing = [file.name for file in set_.files if not (folder / file.name).is_file()]
        if missing:
            raise files.unknown_layout(name, folder, f"the archives together with {', '.join(missing)}")
        for file in set_.files:
            path = folder / file.name
            download.verify(path, file, quiet)
            if file.name.endswith(ARCHIVES):
                download.extract(path, _result(home, file), quiet)
            elif path != home / file.name:
                atomic.write_atomic(home / file.name, partial(shutil.copyfile, path))
        files.location(name).unlink(missing_ok=True)
        return set_.count(home)
    if name == "wavcaps" and not wavcaps.sounds(folder):
        raise files.unknown_layout(name, folder, wavcaps.LAYOUT)
    if name == "audiocaps" and audiocaps.tables(folder) is None or name == "wavcaps" and not wavcaps.complete(folder):
        for file in set_.files:
            download.fetch(file, home, quiet)
    counts = set_.count(folder)
    record(name, folder)
    return counts


def record(name: str, folder: Path) -> None:
    """Let a data set be what lies in a folder."""
    text = json.dumps({"folder": str(folder)}, ensure_ascii=False, indent=1)
    atomic.write_text(files.location(name), text)


def _locate(name: str) -> Path:
    with suppress(ValueError, OSError):
        return files.locate(name, None)
    return places.home() / name
