"""What the papers show, all of it, and the diagrams among it."""

import re

import matplotlib
import nbformat
import pytest

from atr.analysis import diagrams
from atr.reports import figures, reference
from atr.system import places


def test_each_table_and_figure_of_the_papers_has_its_counterpart_or_says_why_not():
    table = reference.exhibits()
    assert not table.duplicated(["paper", "exhibit"]).any() and len(table) == 36
    notebooks = {path.name[:2]: path for path in (places.PROJECT / "notebooks").glob("[0-9]*.ipynb")}
    for row in table.itertuples():
        if row.ours.startswith("none: "):
            assert len(row.ours) > 20 and not row.notebook
            continue
        cells = nbformat.read(notebooks[row.notebook], as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        assert f'"{row.ours}"' in source and row.ours.startswith(f"{row.notebook}_"), row
    printed = {path.stem for path in (places.PROJECT / "data" / "reference").glob("*_table*.csv")}
    numbers = {re.sub(r".*_table", "", name).replace("_", ".") for name in printed}
    roman = {"I": "1", "II": "2", "III": "3"}
    listed = {roman.get(name.split()[1], name.split()[1]) for name in table["exhibit"] if name.startswith("table")}
    assert numbers == listed


@pytest.mark.parametrize("draw", [diagrams.dual_encoder, diagrams.stages, diagrams.penalty])
def test_boxes_lie_on_the_page_and_none_over_another(draw):
    matplotlib.use("agg")
    figure = draw()
    try:
        figure.canvas.draw()
        axis = figure.axes[0]
        boxes = [text.get_bbox_patch().get_window_extent() for text in axis.texts if text.get_bbox_patch()]
        assert len(boxes) >= 4
        for place, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:place])
        assert figure.get_figwidth() == figures.PAGE
    finally:
        matplotlib.pyplot.close(figure)
