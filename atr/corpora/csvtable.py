"""CSV tables of captions as text: read whole, or refused with the place and the mend."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from atr.corpora.corpus import CorpusError, Problem

CAPTION_COLUMN = re.compile(r"caption(_\d+)?")
MOST_COLUMNS, LONGEST_LINE = 1_000, 1 << 20  # characters; with more a file is no table of captions


class Table(NamedTuple):
    """A CSV file's cells as they stand, but for blanks around the header's; the line in which each row begins."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    @property
    def uneven(self) -> dict[int, str]:
        """What is wrong with the rows that have not as many cells as the header."""
        cells = len(self.header)
        widths = {row: len(one) for row, one in enumerate(self.rows) if len(one) != cells}
        return {row: f"{fields} fields where the header has {cells}" for row, fields in widths.items()}


def read_csv(path: Path, name: str, most: int = MOST_COLUMNS, encoding: str = "utf-8-sig") -> Table | Problem:
    """A comma-separated file in UTF-8, of at most so many columns, without blank rows, or why it is none; `name` is
    what a problem calls it.
    """
    table, start = Table([], [], []), 1
    try:
        with open(path, newline="", encoding=encoding) as file:
            reader = csv.reader(_lines(file), strict=True)
            for cells in reader:
                if any(map(str.strip, cells)):
                    if not table.header and len(cells) > most:
                        problem = f"{len(cells):,} columns, more than {most:,}"
                        return Problem(
                            name, problem, "name a table with one row per file, or keep its columns of captions"
                        )
                    if table.header:
                        table.rows.append(cells)
                        table.lines.append(start)
                    else:
                        table.header.extend(cell.strip() for cell in cells)
                start = reader.line_num + 1
    except OSError as error:
        return Problem(str(path), f"cannot be read ({error.strerror})", "put the table there or name the right one")
    except UnicodeDecodeError:
        return _first_bad_byte(path, name)
    except csv.Error as error:
        return Problem(f"{name}, line {start}", f"no valid CSV from here on ({error})", "mend its quotes and line ends")
    twice = [column for column, count in Counter(table.header).items() if count > 1 and column]
    if twice:
        return Problem(name, f"column {twice[0]!r} is there twice", "remove or rename one")
    return table


def _lines(file: Any) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE:,} characters")
        if "\0" in line:
            raise csv.Error("a byte 0x00, as in UTF-16 and in files that are no text")
        yield line


def _first_bad_byte(path: Path, name: str) -> Problem:
    """Where the bytes of a file stop being UTF-8; no line before that is longer than LONGEST_LINE."""
    at = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                problem = f"byte {at + error.start} of the file, 0x{line[error.start]:02x}, is no UTF-8 text"
                return Problem(f"{name}, line {number}", problem, "save the table again as CSV in UTF-8")
            at += len(line)
    return Problem(name, "it changes while it is read", "let it be complete, then run again")


def frame(path: Path, most: int = MOST_COLUMNS, latin: bool = False) -> pd.DataFrame:
    """A CSV file's cells as text; ValueError, with the place and the mend, for what is none. latin: what is no UTF-8 is
    read as Latin-1.
    """
    encoding = "utf-8-sig"
    if latin:
        try:
            path.read_text(encoding=encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
    table = read_csv(path, str(path), most, encoding)
    if isinstance(table, Table):
        for row, problem in table.uneven.items():
            raise ValueError(f"{path}, row {row + 1}: {problem}; put quotes around a text that contains commas")
        if table.header:
            return pd.DataFrame(table.rows, columns=table.header, dtype="str")
        table = Problem(str(path), "is empty", "save the table again as CSV in UTF-8")
    raise ValueError(f"{table.where}: no table in CSV ({table.problem}); {table.mend}")


def column_list(header: list[str]) -> str:
    """A table's columns in words, not too many of them."""
    return ", ".join(map(repr, header[:12])) + (f" and {len(header) - 12} more" if len(header) > 12 else "")


def read_table(name: str, path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8, every cell as it stands; CorpusError, with the line, for one that is damaged."""

    def failure(where: str, problem: str) -> CorpusError:
        return CorpusError(name, [Problem(where, problem, "fetch it again or name the right folder")])

    table = read_csv(path, str(path))
    if isinstance(table, Problem):
        raise failure(table.where, f"no CSV in UTF-8: {table.problem}")
    missing = [column for column in required if column not in table.header]
    if missing:
        raise failure(str(path), f"no column {missing[0]!r} (the header has {column_list(table.header) or 'nothing'})")
    for row, problem in table.uneven.items():
        raise failure(f"{path}, line {table.lines[row]}", problem)
    return [dict(zip(table.header, cells, strict=True)) for cells in table.rows]


def caption_columns(count: int) -> list[str]:
    """As published tables name them."""
    return [f"caption_{number}" for number in range(1, count + 1)]


def captions_of(row: Mapping[str, str]) -> list[str]:
    """The row's captions in the order of its columns."""
    return [text for column, text in row.items() if CAPTION_COLUMN.fullmatch(column)]
