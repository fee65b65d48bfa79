"""A folder of embeddings, as `atr evaluate embeddings:<folder>` reads it."""

import numpy as np


def written(folder, part, audio, text):
    """A folder of embeddings of what `part` holds; a caption that it has twice has the later one's."""
    last = {caption: row for row, caption in enumerate(part.captions["caption"])}
    text = np.asarray(text)[[last[caption] for caption in part.captions["caption"]]]
    np.save(folder / "audio.npy", audio)
    np.save(folder / "text.npy", text)
    (folder / "clips.txt").write_text("".join(f"{clip}\n" for clip in part.clips["clip"]))
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in part.captions["caption"]))
    return folder
