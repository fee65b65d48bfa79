"""LaTeX: signs that it needs escaped, and a report as a bundle to compile or to take from."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

import pandas as pd

from atr.reports.names import numeric

# Signs that plain LaTeX does not know.
SIGNS = str.maketrans(
    {"→": r"$\rightarrow$", "±": r"$\pm$", "—": "---", "≥": r"$\geq$", "×": r"$\times$"}
    | {"σ": r"$\sigma$", "α": r"$\alpha$", "τ": r"$\tau$", "√": r"$\surd$", "−": "--"}
)
MARKS = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)
MARKUP = {
    r"\*\*(.+?)\*\*": r"\\textbf{\1}",
    r"\*(.+?)\*": r"\\emph{\1}",
    r"`(.+?)`": r"\\texttt{\1}",
    r'"(.+?)"': r"``\1''",
    r"^(?:-|\d+\.) ": r"\\par ",
}
WIDTH = 15  # of a line of a heading, in letters
WIDE = 100  # of a page in \footnotesize
LONG = 32  # of a cell that takes several lines


def escape(text: str) -> str:
    """Text as LaTeX prints it, but for SIGNS; characters that its fonts lack as their number, such as U+65E5."""
    return "".join(map(_printable, unicodedata.normalize("NFC", text))).translate(MARKS)


def _printable(letter: str) -> str:
    """What fonts in T1 have of a character: Latin letters, and marks such as dashes and quotes."""
    if letter.isspace():
        return "\n" if letter == "\n" else " "
    latin = letter.isprintable() and ord(letter) < 0x180 and letter not in "ĦħĸĿŀŉŦŧſ"
    return letter if latin or letter in "–—‘’‚“”„†‡•…‰€™" or ord(letter) in SIGNS else f"U+{ord(letter):04X}"


def _cell(value: object) -> object:
    """Of a table: on one line; what begins with "[" or "*" would be an option of the line's end before it."""
    if not isinstance(value, str):
        return value
    text = escape(" ".join(value.split()))
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def check_name(name: str) -> str:
    """The name of a table or figure, if LaTeX takes it as it is in a label and a path; ValueError if not."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"table or figure {name!r}: LaTeX needs a name of A to Z, digits, '.', '-' and '_'; rename it")
    return name


def table(parts: Sequence[pd.DataFrame], caption: str, note: str, name: str) -> str:
    """A table of text as floats, one per part, with rules of booktabs: caption above, `note` below the last, labelled
    `tab:<name>` and `tab:<name>-2`. Headings and long cells take several lines; numbers stand to the right.
    """
    floats, below = [], escape(" ".join(note.split()))
    for place, part in enumerate(parts, start=1):
        label, more = f"{check_name(name)}{f'-{place}' if place > 1 else ''}", " (continued)" if place > 1 else ""
        forms, width = _columns(part)
        heads = {head: _heading(head, "r" if numeric(part[head]) else "l") for head in part}
        styled = part.rename(columns=heads).map(_cell).style.hide(axis="index")
        grid = styled.to_latex(column_format=forms, hrules=True).rstrip()
        small = r"\footnotesize" + (r"\setlength{\tabcolsep}{3pt}" if width > WIDE else "")
        title = escape(" ".join(f"{caption}{more}".split()))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{title}}}", rf"\label{{tab:{label}}}", small, grid]
        lines += [rf"\par\smallskip {{\scriptsize {below}\par}}"] * (bool(note) and place == len(parts))
        floats.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(floats).translate(SIGNS) + "\n"


def _columns(part: pd.DataFrame) -> tuple[str, int]:
    """How columns are set: to the right, to the left, or as paragraphs that share what is left; and the width of all
    but these, in letters.
    """
    sizes = widths(part)
    long = [size > LONG for size in sizes]
    rest = sum(size for size, wraps in zip(sizes, long, strict=True) if not wraps)
    share = max(LONG, (WIDE - rest) // max(1, sum(long))) / WIDE
    forms = ["r" if numeric(part[name]) else "l" for name in part]
    paragraph = rf">{{\raggedright\arraybackslash}}p{{{0.85 * share:.2f}\linewidth}}"
    return "".join(paragraph if wraps else form for form, wraps in zip(forms, long, strict=True)), rest


def widths(part: pd.DataFrame) -> list[int]:
    """Of the columns of a table, in letters with the space between; a heading takes several lines."""
    heads = [max(map(len, _lines(name))) for name in part]
    return [max([head, *map(len, part[name])]) + 2 for name, head in zip(part, heads, strict=True)]


def _lines(heading: object) -> list[str]:
    return textwrap.wrap(str(heading), WIDTH, break_long_words=False, break_on_hyphens=False) or [""]


def _heading(name: object, side: str) -> str:
    cells = [str(_cell(line)) for line in _lines(name)]
    return rf"\shortstack[{side}]{{" + r" \\ ".join(cells) + "}" if len(cells) > 1 else cells[0]


def prose(markdown: str) -> str:
    """Markdown of paragraphs, lists, emphasis and code as LaTeX."""
    text = escape(markdown)
    for pattern, replacement in MARKUP.items():
        text = re.sub(pattern, replacement, text, flags=re.M)
    return text.translate(SIGNS)
