"""People's captions without their sounds: what a model can learn of their language all the same."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from atr.corpora import csvtable
from atr.system import atomic, hashes
from atr.system.places import home


def collect(tables: Sequence[str | Path], without: Iterable[str] = ()) -> str:
    """Captions of clips that have several, as one table below `<home>/captions/`: its name, which hangs on its content.

    tables: CSV files with one row per clip and its captions in the columns caption_1 and so on, as Mei et al. 2022
    published those of Clotho and AudioCaps. without: captions to be tested on, of any spelling in capitals or blanks; a
    clip that has one of them is left out whole. ValueError: a table that cannot be read, or nothing that is left.
    """
    tested = {plain(caption) for caption in without}
    rows = [
        (f"{Path(table).stem}/{number}", caption)
        for table in tables
        for number, row in enumerate(csvtable.read_table("captions", Path(table), ()))
        if len(captions := [text for text in csvtable.captions_of(row) if text.strip()]) > 1
        if not tested.intersection(map(plain, captions))
        for caption in captions
    ]
    if not rows:
        names = ", ".join(map(str, tables)) or "no tables"
        raise ValueError(
            f"{names}: no clip with several captions is left; give tables with caption_1, caption_2 and on"
        )
    content = pd.DataFrame(rows, columns=["clip", "caption"]).to_csv(index=False, lineterminator="\n")
    name = f"{hashes.sha256(content)[:12]}.csv"
    atomic.write_text(home() / "captions" / name, content)
    return name


def read(name: str) -> pd.DataFrame:
    """A table that `collect` wrote, or a CSV file of one's own: clip, caption, a clip's captions in several rows.

    FileNotFoundError: it lies neither here nor below `<home>/captions/`. ValueError: it has other columns.
    """
    places = [Path(name).expanduser(), home() / "captions" / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        where = " and ".join(map(str, places))
        raise FileNotFoundError(
            f"text_contrast: {name!r}: no such file, looked at {where}; `collect` of {__name__} makes one"
        )
    table = csvtable.frame(path)
    if not {"clip", "caption"} <= set(table.columns) or not table["clip"].duplicated().any():
        raise ValueError(
            f"{path}: no table of several captions a clip; give the columns clip and caption, in rows of a caption each"
        )
    return table[["clip", "caption"]]


def plain(caption: str) -> str:
    """A caption without what does not tell it from others: capitals, and blanks but for one between words."""
    return " ".join(caption.lower().split())
