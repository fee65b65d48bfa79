"""Published numbers by protocol, as a page: python -m atr.evaluation.leaderboard writes docs/leaderboard.md."""

from pathlib import Path

import pandas as pd

from atr.evaluation import protocols
from atr.system import atomic, places

TABLE = Path(__file__).with_suffix(".csv")
PAGE = places.PROJECT / "docs" / "leaderboard.md"
NUMBERS = ["t2a R@1", "t2a R@5", "t2a R@10", "t2a mAP@10", "t2a mAP@16", "a2t R@1", "a2t R@5", "a2t R@10"]
WORDS = ["model", "protocol", "runs", "by", "source", "table", "note"]
UNKNOWN = "not stated"
HEAD = """# Published numbers

Text to audio (t2a) and audio to text (a2t), in percent, by the protocol that they were measured under
([evaluate.md](evaluate.md)). Within one protocol they can be held against each other, between two they cannot, but that
`dcase2022-6b` is `clotho-5225`. Of several `runs` it is the mean; where no number of runs stands, none is stated.
Papers rarely say how sure a number is: `atr evaluate` adds 95 % intervals over clips.

This page is made from `atr/evaluation/leaderboard.csv` by `python -m atr.evaluation.leaderboard`. Each row names its
source; of those that name a table of `data/reference/`, a test compares the numbers with it.
"""


def read(path: Path = TABLE) -> pd.DataFrame:
    """The table, its cells as they are written. ValueError: what is no leaderboard, naming the row."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table) != [*WORDS[:2], *NUMBERS, *WORDS[2:]]:
        raise ValueError(
            f"{path}: columns {', '.join(map(str, table))}; give {', '.join([*WORDS[:2], *NUMBERS, *WORDS[2:]])}"
        )
    names = (*protocols.names(), UNKNOWN)
    for row in table.to_dict("records"):
        numbers = [row[name] for name in NUMBERS if row[name]]
        if row["protocol"] not in names:
            raise ValueError(f"{path}, {row['model']!r}: protocol {row['protocol']!r}; known: {', '.join(names)}")
        if not numbers or not all(0 <= float(number) <= 100 for number in numbers) or not (row["source"] and row["by"]):
            raise ValueError(f"{path}, {row['model']!r}: needs numbers from 0 to 100, a source, and by whom they are")
    return table


def page(table: pd.DataFrame) -> str:
    """The table in Markdown: of a protocol, and of a data set where none is stated, the best first by what most of its
    rows have, of R@10, R@1 and mAP@16.
    """
    parts = [HEAD]
    for name in dict.fromkeys(table["protocol"]):
        part = table[table["protocol"] == name]
        title = f"{protocols.get(name).title}." if name != UNKNOWN else "Which clips were searched is not said."
        sets = part["note"].str.extract(r"^(\w*)")[0] if name == UNKNOWN else ""
        by = max(("t2a R@10", "t2a R@1", "t2a mAP@16"), key=(part != "").sum().get)
        order = part.assign(sets=sets, best=-pd.to_numeric(part[by])).sort_values(["sets", "best"], kind="stable")
        part = part.loc[order.index]
        numbers = [column for column in NUMBERS if (part[column] != "").any()]
        columns = ["model", *numbers, "runs", "by", "source"]
        rows = [
            [*row[:-2], f"{row[-2]}: {row[-1]}" if row[-1] else row[-2]] for row in part[[*columns, "note"]].to_numpy()
        ]
        lines = [columns, ["---"] * len(columns), *rows]
        parts += [
            f"\n## {name}\n\n{title}\n\n",
            *("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines),
        ]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or "—"


if __name__ == "__main__":
    atomic.write_text(PAGE, page(read()))
    print(f"→ {PAGE}")
