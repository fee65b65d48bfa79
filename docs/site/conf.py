"""The project page: README, docs, executed notebooks, reports and the reference of `atr`, by Sphinx (`make site`)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results/reference"
NOTEBOOKS = {
    folder.parent.name: sorted(folder.glob("*.ipynb")) for folder in sorted((ROOT / RESULTS).glob("*/notebooks"))
}

project = "atr"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["*.md", "atr/README.md", "data/README.md", "docs/*.md", f"{RESULTS}/*/notebooks/*.ipynb"]
include_patterns += ["notebooks/own_experiment.ipynb"]
exclude_patterns = [".*", "build", "data/cache", "results/[!r]*"]
suppress_warnings = ["myst.header"]  # a notebook's tables bring headings of their own

html_theme = "furo"
html_title = "atr"
html_static_path = ["static"]
html_js_files = ["sort.js"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "start.html"}
templates_path = ["."]
html_show_copyright = html_show_sphinx = html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # nothing from another host
nb_merge_streams = True
myst_heading_anchors = 3


def read(app, docname, source):
    """A link to a notebook leads to its executed copy, one to the results to the list that ends README."""
    executed = {path.name: path for profile in reversed(NOTEBOOKS) for path in NOTEBOOKS[profile]}
    executed |= {path.name: path for path in NOTEBOOKS["demo"]}
    if not docname.startswith(RESULTS):
        for name, path in executed.items():
            source[0] = source[0].replace(f"notebooks/{name})", f"{path.relative_to(ROOT)})")
        source[0] = source[0].replace(f"{RESULTS})", "README.md#all-results)")
    if docname == root_doc:
        lines = [line for line in source[0].splitlines() if not line.startswith("[![")]  # badges are the repository's
        source[0] = "\n".join(lines) + contents()


def contents() -> str:
    """The way to every page, which GitHub does not need."""
    docs = [f"docs/{path.stem}" for path in sorted((ROOT / "docs").glob("*.md"))]
    top = [path.stem for path in sorted(ROOT.glob("*.md")) if path.stem != root_doc]
    trees = {"Pages": [*docs, "notebooks/own_experiment", "atr/README", "data/README", *top]}
    lines = ["\n\n## All results\n"]
    for profile, notebooks in NOTEBOOKS.items():
        lines.append(f'- <a href="reports/{profile}/index.html">The report of profile `{profile}`</a>')
        trees[f"Notebooks of {profile}"] = [f"{RESULTS}/{profile}/notebooks/{path.stem}" for path in notebooks]
    lines.append('- <a href="api/atr.html">The modules of `atr`</a>')
    for caption, entries in trees.items():
        lines += ["\n```{toctree}", ":hidden:", f":caption: {caption}\n", *entries, "```"]
    return "\n".join(lines)


def setup(app):
    app.connect("source-read", read)
