"""What notebooks ask of scenes mixed from a folder of clips, and of a MobileNet, in miniature."""

import miniature
import pandas as pd
import torch
from test_clipfolder import make_folder

from atr import encoders


def test_pairs_of_captions_and_attention_are_told_of_recordings(tmp_path):
    root = make_folder(tmp_path / "clips", each=2)
    weights = tmp_path / "home" / "checkpoints" / "miniature" / "mn04.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(encoders.build("mn04").state_dict(), weights)
    miniature.run_notebooks("recordings", ["01", "09"], tmp_path, ATR_HOME=str(tmp_path / "home"), ATR_CLIPS=str(root))
    tables = tmp_path / "recordings" / "tables"
    pairs = pd.read_csv(tables / "01_pairs.csv")
    assert {"order", "overlap"} <= set(pairs["aspect"]) and pairs["accuracy"].between(0, 100).all()
    looks = pd.read_csv(tables / "09_attention.csv")
    assert len(looks)
