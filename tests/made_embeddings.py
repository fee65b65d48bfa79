"""A folder of embeddings, as `atr evaluate embeddings:<folder>` reads it."""

import numpy as np


def written(folder, part, audio, text):
    """A folder of embeddings of what `part` holds."""
    np.save(folder / "audio.npy", audio)
    np.save(folder / "text.npy", text)
    (folder / "clips.txt").write_text("".join(f"{clip}\n" for clip in part.clips["clip"]))
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in part.captions["caption"]))
    return folder
