"""`atr index` and `atr search`: the sounds of a folder, found by words."""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atr.cli.console import DeviceOption, ProfileOption, QuietOption, doing, fail, print_table, say
from atr.experiments.profiles import Profile, get_profile
from atr.system import places
from atr.system.interrupt import as_exception
from atr.training import find

if TYPE_CHECKING:
    from atr.config import RunConfig
    from atr.inference.embedder import Embedder

RunOption = Annotated[
    str | None, typer.Option(help="First digits of a finished run's address, atr runs list; or the folder of a pack.")
]
ClapOption = Annotated[
    str | None,
    typer.Option(help="Instead: a CLAP model of transformers, its folder or name, or laion:<file> or msclap:<file>."),
]
PLAYERS = {
    "ffplay": ["-nodisp", "-autoexit", "-loglevel", "error"],
    "aplay": ["-q"],
    "paplay": [],
    "afplay": [],
    "play": ["-q"],
}
MOST_PROBLEMS = 5  # problems, if not all are asked for


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of sounds, with all folders in it.")],
    run: RunOption = None,
    profile: ProfileOption = "demo",
    clap: ClapOption = None,
    segment: Annotated[
        float | None, typer.Option(help="Seconds that have one embedding: 10, or fewer where the model hears fewer.")
    ] = None,
    problems: Annotated[bool, typer.Option("--problems", help="List all files that cannot be used.")] = False,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Embed the sounds of a folder, so that atr search finds them by words.

    Run it again when the folder has changed: only new and changed files are heard. Interrupt it whenever you like, the
    same command continues where it stopped. Without --run or --clap it takes a model of profile esc50 where mn04's
    weights and ESC-50 are at hand, else the demo's best single one, and trains it the first time.
    """
    if not folder.expanduser().exists():
        raise FileNotFoundError(f"{folder}: no such folder; give one that has sounds in it")
    _check(run, profile, clap)
    from atr.inference.folder import check
    from atr.inference.search import Index, check_segment
    from atr.system import units
    from atr.system.devices import resolve_device

    try:
        check_segment(segment)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    check(folder.expanduser())
    resolve_device(device)
    doing("looking for the model")
    record = _model(run, profile, clap, device, quiet)
    doing("loading the model")
    embedder = _embedder(record, device, quiet)
    if "trained_on" in record:
        say(_confession(record))
    doing("looking at the sounds")
    report = Index(folder, embedder, segment, record).update(quiet)
    if not report.usable:
        first = report.problems.iloc[0]
        raise ValueError(f"{folder}: none of its sounds can be used; {_plain(first['path'])}: {first['problem']}")
    say(f"{_plain(folder)}: {report}")
    for path, problem in report.problems[: None if problems else MOST_PROBLEMS].itertuples(index=False):
        say(f"  {_plain(path)}: {problem}")
    if len(report.problems):
        rest = "" if problems or len(report.problems) <= MOST_PROBLEMS else "; --problems lists all"
        say(f"{units.count_of(len(report.problems), 'file')} cannot be used{rest}.")
    say(f'→ atr search "a dog barks" {shlex.quote(str(folder))}')


def search(
    query: Annotated[
        str | None,
        typer.Argument(
            help='What you look for, in quotes: "rain on a tin roof". Without it you are asked, again and again.'
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Argument(help="An indexed folder; the one that was indexed last.")] = None,
    within: Annotated[Path | None, typer.Option("--in", help="The folder, where you give no sentence.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Files to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    play: Annotated[bool, typer.Option("--play", help="Play the best one.")] = False,
    run: RunOption = None,
    profile: ProfileOption = "demo",
    clap: ClapOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find sounds of an indexed folder by words: the best files, each with the segment that fits best.

    The score is a cosine: 1 at most, and to be compared within one search only. Without --run or --clap the model is
    the one that the folder was indexed with. Without a sentence it asks for one after the other, and loads the model
    once; an empty line, or Ctrl-D, ends it.
    """
    if query is not None and not query.strip():
        raise ValueError('empty query; describe a sound in a few words, such as "a dog barks"')
    folder = folder or within
    _check(run, profile, clap)
    _check_index(folder, query)
    from atr.inference.search import Index
    from atr.system.devices import resolve_device

    resolve_device(device)
    with _remarks():
        entries = _indexes(folder, query)
    record = entries[0]["model"]
    if run or clap or not record:
        record = _model(run, profile, clap, device, True)
    doing("loading the model")
    embedder = _embedder(record, device, True)
    entry = _entry_of(embedder, entries)
    place, remarks = entry["folder"], _notes(entry, record, query or "a sound")
    index = Index(place, embedder, entry["segment"], record)

    def answer(query: str) -> None:
        with _remarks():
            rows = index.search(query, top)
        if rows.empty:
            raise ValueError(f"{place}: no sound in its index; atr index says why")
        while remarks:  # once
            say(remarks.pop(0), error=True)
        _show(rows, place, as_json)
        if play:
            _play(*rows.loc[0, ["path", "start", "end"]])

    if query is not None:
        return answer(query)
    say(f"Searching {_plain(place)}. Describe a sound and press Enter; an empty line ends.", error=True)
    _ask(answer)


def _entry_of(embedder: "Embedder", entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of the indexes that the embedder made, as it is now. ValueError: none of them."""
    first = entries[0]
    entry = next((one for one in entries if one["fingerprint"] == embedder.fingerprint), None)
    if entry is None:
        raise ValueError(
            f"{first['folder']}: indexed by {first['name']}, not by {embedder.name} as it is now; index it again with "
            f"the same options: atr index {shlex.quote(first['folder'])}"
        )
    return entry


def _notes(entry: dict[str, Any], record: dict[str, Any], query: str) -> list[str]:
    """What is to be known of a search, a line each: how good its model is, and what of its index is not there."""
    notes = [_reminder(record, query)] if "trained_on" in record else []
    if not entry["complete"]:
        notes.append("Indexing was interrupted or goes on, so not all is searched: run atr index again.")
    if not Path(entry["folder"]).is_dir():
        notes.append(f"{_plain(entry['folder'])}: not here; where it lies now, run: atr index <folder>")
    return notes


def _ask(answer: Callable[[str], None]) -> None:
    """Answer one query after the other, until an empty one or the end of the input; an error ends its query alone."""
    with suppress(ImportError):
        import readline  # noqa: F401  # with it `input` knows the arrow keys, and what was asked before
    while True:
        try:
            with as_exception():
                query = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return say("", error=True) if sys.stdin.isatty() else None  # where the prompt stands
        if not query.strip():
            return
        try:
            answer(query)
        except (ValueError, OSError) as error:
            fail(error)


def default_model() -> "tuple[Profile, RunConfig]":
    """What is taken where no model is named, first seed: of profile esc50 frozen encoders that have learned class names
    and, where there are any, people's captions, if `mn04`'s weights and ESC-50 are at hand; else the residual CNN,
    fine-tuned in profile demo.
    """
    from atr.encoders.checkpoints import REGISTRY
    from atr.experiments.rates import at_step
    from atr.experiments.recipes import CLASS_NAMES

    clips, demo = get_profile("esc50"), get_profile("demo")
    changes: dict[str, Any]
    missing = () if places.place("ATR_CLIPS") else (ValueError,)  # ESC-50 is not here, and nobody said that it is
    with suppress(*missing):
        if clips.root and (places.home() / "checkpoints" / REGISTRY["mn04"].file.name).is_file():
            words = clips.words()
            changes = CLASS_NAMES | ({"text_contrast": {"captions": words}} if words else {})
            return clips, clips.config(list(clips.corpora)[-1], "frozen", "nt_xent", clips.seeds[0], **changes)
    config = demo.config(list(demo.corpora)[-1], "finetuned", "nt_xent", demo.seeds[0], audio_encoder=demo.cnns[1])
    return demo, at_step(config, -1)  # where this loss's search of the rate ends


def _check(run: str | None, profile: str, clap: str | None) -> None:
    """ValueError: options that name no model, as far as they show it before one is loaded."""
    if run is not None and clap is not None:
        raise ValueError("--run and --clap: give one of them")
    if "" in (run, clap):
        raise ValueError("--run or --clap: empty; name a model, or leave it out")
    if run is not None and not Path(run).expanduser().is_dir():
        find(run, get_profile(profile).runs)
    if clap:
        _check_clap(clap)


def _check_clap(clap: str) -> None:
    """ValueError: what is no CLAP model."""
    from atr.encoders.clap import FILES, folder
    from atr.encoders.clap_files import PREFIXES, locate

    if clap.startswith(PREFIXES):
        kind, path = locate(clap)
        if not path.is_file():
            raise ValueError(f"--clap: {path}: no such file; give the file of a CLAP model, {kind}:<file>")
    elif Path(clap).expanduser().exists() or Path(clap).suffix in FILES:
        folder(clap)  # which says what it takes


def _model(run: str | None, profile: str, clap: str | None, device: str, quiet: bool) -> dict[str, Any]:
    """What an index keeps of its model: `clap`, or `run`, its folder or pack, with the `root` of its corpus; of the
    default one also the kinds of sound it was `trained_on`, and its `r10` among so many clips.
    """
    from atr.encoders.clap_files import PREFIXES, locate
    from atr.inference.pack import PACK

    if clap:
        kind, path = locate(clap) if clap.startswith(PREFIXES) else ("", Path(clap).expanduser())
        path, checkpoints = path.resolve(), (places.home() / "checkpoints").resolve()
        if path.is_relative_to(checkpoints):  # then its name is enough, also once ATR_HOME is elsewhere
            path = path.relative_to(checkpoints)
        elif not path.exists():
            return {"clap": clap}  # of the Hub
        return {"clap": f"{kind}:{path}" if kind else str(path)}
    if run and (packed := Path(run).expanduser() / PACK).is_file():
        return {"run": str(packed.parent.resolve()), "root": None}
    if run:
        path, root = find(run, get_profile(profile).runs), get_profile(profile).root
        return {"run": str(path.resolve()), "root": root and str(root.resolve())}
    return _default(device, quiet)


def _default(device: str, quiet: bool) -> dict[str, Any]:
    """The record of the default model, which is trained if it is not in the store."""
    from atr.corpora import corpus_of
    from atr.experiments import executors, planning
    from atr.system import units
    from atr.training import fit, identity

    profile, config = default_model()
    folder, corpus = profile.runs, corpus_of(config.corpus, profile.root)
    size = planning.size(config, corpus)
    try:
        finished, preparation = identity.locate(config, corpus, folder, fetch=False).finished, 0.0
    except FileNotFoundError:
        finished, preparation = False, planning.preparation(size, executors.default_workers("cpu"))
    if not finished:
        took = units.duration((planning.seconds(config, size) + preparation) * planning.speed())
        say(
            f"No model is named, so that of profile {profile.name} is trained first, once: about {took}. Interrupt it "
            "whenever you like."
        )
    done = fit.fit(config, corpus, device=device, runs=folder, quiet=quiet)
    kinds = sorted(corpus.events["event"].unique())
    facts = {"trained_on": kinds, "r10": done.metrics["t2a_r10"], "among": config.corpus["test"]}
    root = profile.root and str(profile.root.resolve())
    return {"run": str(done.path.resolve()), "root": root, "profile": profile.name, **facts}


def _embedder(record: dict[str, Any], device: str, quiet: bool) -> "Embedder":
    from atr.inference.embedder import Embedder
    from atr.inference.pack import PACK
    from atr.training import identity
    from atr.training.records import Run

    if "clap" in record:
        return Embedder.clap(record["clap"], device=device)
    path = Path(record["run"])
    if (path / PACK).is_file():
        return Embedder.packed(path, device=device)
    here = places.results_home().joinpath(*path.parts[-3:])  # <profile>/runs/<address>
    run = Run(path if path.is_dir() or not here.is_dir() else here)
    run.require_finished(" or gone; name another model, or index it again")
    return Embedder(run, identity.pretraining_corpus(run.config, record["root"]), device=device, quiet=quiet)


def indexes() -> Path:
    """Where they lie, as `atr.inference.indexes.home` has it."""
    return places.home() / "indexes"


def _check_index(folder: Path | None, query: str | None) -> None:
    """ValueError, without waiting for PyTorch, where nothing is indexed, or not this folder."""
    try:
        folders = {json.loads(file.read_bytes())["folder"] for file in indexes().glob("*/index.json")}
    except (ValueError, LookupError, TypeError, OSError):
        folders = {None}
    if not all(isinstance(name, str) for name in folders):
        return  # what is damaged is named later
    if not folders or folder is not None and str(folder.expanduser().resolve()) not in folders:
        raise _missing_index(folder, query)


def _missing_index(folder: Path | None, query: str | None) -> ValueError:
    if folder is None:
        return ValueError("no folder is indexed yet; run: atr index <folder>")
    if not folder.expanduser().exists():
        quotes = f'; a query of several words needs quotes: "{query} {folder}"' if query else ""
        return ValueError(f"{folder}: no such folder{quotes}")
    return ValueError(f"{folder}: not indexed yet; run: atr index {shlex.quote(str(folder))}")


def _indexes(folder: Path | None, query: str | None) -> list[dict[str, Any]]:
    """The indexes that may be meant, the last one first; ValueError that names the command if there are none."""
    from atr.inference.indexes import INDEX_VERSION, descriptions

    entries = descriptions(folder)
    if not entries:
        raise _missing_index(folder, query)
    if folder is None:
        entries = [one for one in entries if one["folder"] == entries[0]["folder"]]
    current = [one for one in entries if one["version"] == INDEX_VERSION]
    if not current:
        name = entries[0]["folder"]
        raise ValueError(f"{name}: indexed by another version of atr; run: atr index {shlex.quote(name)}")
    return current


def _confession(record: dict[str, Any]) -> str:
    kinds = record["trained_on"]
    score = (
        f"There it has the right one of {record['among']} among its first ten for {record['r10']:.0f} % of captions."
    )
    if record.get("profile") == "esc50":
        return (
            "Model: that of profile esc50, an encoder that has heard AudioSet under heads trained on scenes of "
            f"recordings of {len(kinds)} kinds of sound. {score} Others: --clap, --run."
        )
    return (
        f"Model: the residual CNN of profile demo, small and trained on synthetic soundscapes alone. {score} It has "
        f"never heard a recording, and knows {len(kinds)} kinds of sound: {', '.join(kinds)}. Expect more on real "
        "sound of one that has: fetch atr data mn04 and atr data esc50, or name a CLAP model (--clap) or a run (--run)."
    )


def _reminder(record: dict[str, Any], query: str) -> str:
    letters = [letter for letter in query if letter.isalpha()]
    english = sum(letter.isascii() for letter in letters) >= len(letters) / 2
    kinds = len(record["trained_on"])
    line = (
        f"Model: esc50's, R@10 {record['r10']:.0f} % on scenes mixed from recordings of {kinds} kinds"
        if record.get("profile") == "esc50"
        else f"Model: the demo's, R@10 {record['r10']:.0f} % on synthetic soundscapes of {kinds} kinds; it has never "
        "heard a recording"
    )
    line += " (--clap or --run name another)."
    return line if english else f"{line} It was taught in English."


def _show(rows: Any, folder: str, as_json: bool) -> None:
    from atr.system.units import clock

    if as_json:
        records = rows.round({"score": 4, "start": 3, "end": 3}).to_dict("records")
        doing()
        typer.echo(json.dumps(records, indent=1))
        return
    table = rows.assign(
        score=rows["score"].map("{:.2f}".format),
        at=rows["start"].map(clock) + " – " + (rows["end"] + 0.9).map(clock),
        file=[_plain(Path(path).relative_to(folder)) for path in rows["path"]],
    )
    say(_plain(f"{rows.loc[0, 'query']}, in {folder}:"))
    print_table(table[["score", "at", "file"]])


def _play(path: str, start: float, end: float) -> None:
    """The sound between two times, by the first player that is here; OSError if that is none."""
    import soundfile

    from atr.system.units import clock

    player = next((name for name in PLAYERS if shutil.which(name)), None)
    if player is None:
        raise OSError(f"no player found ({', '.join(PLAYERS)}): install one, or open {path} at {clock(start)}")
    with tempfile.TemporaryDirectory() as folder:
        piece = Path(folder) / "piece.wav"
        try:
            with soundfile.SoundFile(path) as file:
                file.seek(round(start * file.samplerate))
                soundfile.write(piece, file.read(round((end - start) * file.samplerate)), file.samplerate)
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path}: changed since it was indexed ({error}); run atr index again") from error
        say(f"{player}: {path}, {clock(start)} – {clock(end)}", error=True)
        result = subprocess.run([player, *PLAYERS[player], str(piece)], capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{player} failed: {result.stderr.strip() or result.returncode}; open {path} at {clock(start)}")


@contextmanager
def _remarks() -> Iterator[None]:
    """Warnings as lines of their own."""
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for remark in remarks:
                say(_plain(remark.message), error=True)


def _plain(name: object) -> str:
    """A file's name that a terminal can show, whatever bytes it is made of."""
    return "".join(letter if letter.isprintable() else "�" for letter in str(name))
