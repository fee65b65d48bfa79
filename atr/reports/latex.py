"""LaTeX: signs that it needs escaped, and a report as a bundle to compile or to take from."""

import re
import textwrap
import unicodedata

import pandas as pd

# Signs that plain LaTeX does not know.
SIGNS = str.maketrans(
    {"→": r"$\rightarrow$", "±": r"$\pm$", "—": "---", "≥": r"$\geq$", "×": r"$\times$"}
    | {"σ": r"$\sigma$", "α": r"$\alpha$", "√": r"$\surd$", "−": "--"}
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
WIDTH = 15  # of a line of a heading


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


def checked(name: str) -> str:
    """The name of a table or figure, if LaTeX takes it as it is in a label and a path; ValueError if not."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"table or figure {name!r}: LaTeX needs a name of A to Z, digits, '.', '-' and '_'; rename it")
    return name


def table(frame: pd.DataFrame, caption: str, name: str) -> str:
    """A table with rules of booktabs, its caption above it, labelled `tab:<name>`; long headings take several lines."""
    styled = frame.rename(columns=_heading).map(_cell).style.hide(axis="index")
    caption = " ".join(caption.split())
    styled = styled.format(precision=2, na_rep="")
    return styled.to_latex(caption=escape(caption), label=f"tab:{checked(name)}", hrules=True).translate(SIGNS)


def _heading(name: object) -> str:
    lines = textwrap.wrap(str(name), WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    cells = [str(_cell(line)) for line in lines]
    return r"\shortstack[l]{" + r" \\ ".join(cells) + "}" if len(cells) > 1 else cells[0]


def prose(markdown: str) -> str:
    """Markdown of paragraphs, lists, emphasis and code as LaTeX."""
    text = escape(markdown)
    for pattern, replacement in MARKUP.items():
        text = re.sub(pattern, replacement, text, flags=re.M)
    return text.translate(SIGNS)
