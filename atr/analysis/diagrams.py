"""What the papers show as diagrams, drawn once: the dual encoder, the three stages of 3CMLF, the penalty's pipeline."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from atr.reports import figures

Box = tuple[float, float, str, str]  # x and y of its middle, in inches; what it says; its colour


def dual_encoder() -> Figure:
    """A sound and a caption on their way into one space, and the similarities of a mini-batch: figure 1 of Tourbabin
    and Ben-Hur 2023 and of Mei et al. 2022 (DCASE), figures 2.2 and 2.4 of Tymofieiev 2025.
    """
    boxes = {
        "sound": (0.45, 1.6, "sounds\nB", "C1"),
        "audio": (1.75, 1.6, "audio encoder", "C1"),
        "frames": (3.0, 1.6, "pooling,\nhead", "C1"),
        "words": (0.45, 0.4, "captions\nB", "C0"),
        "text": (1.75, 0.4, "text encoder", "C0"),
        "tokens": (3.0, 0.4, "pooling,\nhead", "C0"),
        "cosine": (4.6, 1.0, "cosine of each sound\nand each caption\nB × B", "0.4"),
        "loss": (6.3, 1.0, "loss: pairs close,\nall else apart", "C2"),
    }
    chains = [("sound", "audio", "frames", "cosine"), ("words", "text", "tokens", "cosine"), ("cosine", "loss")]
    return _draw(boxes, chains, 2.0)


def stages() -> Figure:
    """The three stages of Chao et al. 2022, figure 1: in each one encoder stands still, and batches go from easy to
    hard.
    """
    boxes = {
        "search": (3.4, 1.75, "ancillary model: which training pairs are alike", "0.4"),
        "one": (1.1, 0.6, "stage 1\ntext encoder fixed,\naudio learns;\nbatches of unlike pairs", "C0"),
        "two": (3.4, 0.6, "stage 2\naudio encoder fixed,\ntext learns;\nrandom batches", "C1"),
        "three": (5.7, 0.6, "stage 3\nboth learn;\nbatches of like pairs,\nthe hardest", "C3"),
    }
    return _draw(boxes, [("search", "one"), ("search", "two"), ("search", "three"), ("one", "two", "three")], 2.1)


def penalty() -> Figure:
    """How evenness enters the loss: figure 5 of Tourbabin and Ben-Hur 2023, section 6.2."""
    boxes = {
        "batch": (0.65, 1.1, "embeddings\nof a batch", "C0"),
        "loss": (3.4, 1.5, "NT-Xent", "C2"),
        "drawn": (2.1, 0.4, "eight drawn\ndimensions", "C1"),
        "voxels": (3.55, 0.4, "voxel network:\nwhich of 256", "C1"),
        "entropy": (4.95, 0.4, "entropy h of the\nhistogram", "C1"),
        "sum": (6.3, 1.1, "loss - α (h audio\n+ h text)", "0.4"),
    }
    return _draw(boxes, [("batch", "loss", "sum"), ("batch", "drawn", "voxels", "entropy", "sum")], 1.8)


def _draw(boxes: Mapping[str, Box], chains: Sequence[Sequence[str]], height: float) -> Figure:
    """Boxes with arrows along chains of their names, on a page `height` inches high."""
    figure, ((axis,),) = figures.subplots(height=height, width=figures.PAGE)
    axis.set(xlim=(0, figures.PAGE), ylim=(0, height), aspect="equal")
    axis.set_axis_off()
    labels = {
        name: axis.text(
            *place,
            words,
            ha="center",
            va="center",
            size=8,
            bbox={"boxstyle": "round", "fc": "w", "ec": color, "lw": 1.5},
        )
        for name, (*place, words, color) in boxes.items()
    }
    figure.draw_without_rendering()  # boxes have their size
    for chain in chains:
        for start, end in zip(chain, chain[1:], strict=False):
            patches = {"patchA": labels[start].get_bbox_patch(), "patchB": labels[end].get_bbox_patch()}
            look = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 2, "shrinkB": 2} | patches
            axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=look)
    return figure
