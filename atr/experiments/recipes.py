"""What the papers train with: rates, epochs, schedules."""

from collections.abc import Mapping
from typing import Any

# Usual learning rates, chosen for NT-Xent on validation data (seed 0): where `rates.RateSearch` begins.
SMALL_RATES = {"frozen": {"heads": 1e-3}, "finetuned": {"heads": 2e-3, "audio": 1e-3, "text": 3e-4}}
SMALL_EPOCHS = {"frozen": 80, "finetuned": 20}  # the comparison of losses shows what twice as many bring
# Beside the loss: sounds find the names of what their encoder's own classifier hears. Number and weight were settled in
# sight of all the recordings that the test in people's words is on, so its halves do not speak of that choice.
CLASS_NAMES = {"label_contrast": {"labels": 3, "weight": 2.0}}
# Captions stay near where MiniLM puts them, 384 wide. `model.Adapter.RATIO` was settled likewise.
ADAPTER = {"head": "adapter", "embedding_dim": 384}
SMALL_SCHEDULES = {"frozen": "step", "finetuned": "cosine"}  # so few epochs leave a step schedule no time to settle
SMALL_BASE = {"text_dropout": 0.0}  # MiniLM's top layers train a quarter faster without
PAPER_RATES = {"frozen": {"heads": 1e-4}, "finetuned": {"heads": 1e-4}}
# Mei et al. 2022: see `RunConfig` for the fields. What the released code does, which made the published numbers, and
# what the text says: no dropout, clipping or augmentation of its own, and frozen encoders taken as frozen.
MEI2022 = {
    "audio_encoder": "resnet38",
    "text_encoder": "bert-base-uncased",
    "text_pooling": "first",
    "text_layers": None,
    "embedding_dim": 1024,
    "sampler": "all_captions",
    "step_epochs": 20,
    "max_seconds": 30.0,
}
RECIPES: dict[str, Mapping[str, Any]] = {
    "code": {"padding": "released", "audio_dropout": 0.2, "text_dropout": 0.2, "frozen": "frozen_released"},
    "text": {
        "recipe": "text",
        "pooling": "frequency_mean_max",
        "augment": None,
        "clip_norm": None,
        "select_by": "recall_sum",
        "frozen": "frozen",
    },
}


# Tymofieiev 2025: its released commands, which made the published numbers, and its text. `PaSST` and `ATST` hold what a
# run with that audio encoder has of its own, `text_aware` what one with text-aware pooling has. Figure 3.3 takes the
# embedding from a class token, as ATST-Clip has; both recipes pool frames, since the code runs ATST-Frame, which has
# none, and section 3.6 needs frames.
SIGMOID_RATE = 0.1
TYMOFIEIEV2025 = {
    "text_encoder": "roberta-large",
    "text_dropout": 0.2,
    "caption_style": "tymofieiev2025",
    "head": "linear",
    "pooling": "max_mean",
    "padding": "masked",
    "audio_dropout": None,
    "augment": None,
    "drop_last": False,
    "optimizer": "adamw",
    "learning_rates": {"heads": 2e-5},
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "floor_rate": 1e-7,
    "clip_norm": None,
    "batch_size": 16,
    "epochs": 20,
    "precision": "bf16",
    "ATST": {"audio_encoder": "atst_frame"},
}
THESIS_RECIPES: dict[str, Mapping[str, Any]] = {
    "code": TYMOFIEIEV2025
    | {
        "recipe": "code",
        "cosine_epochs": 15.0,
        "select_by": "last",
        "PaSST": {"audio_encoder": "passt_s_stride16", "augment": "patchout"},
        "text_aware": {"projection_dim": 2048, "dropout": 0.1},
    },
    "text": TYMOFIEIEV2025
    | {
        "recipe": "text",
        "betas": (0.9, 0.99),
        "select_by": "t2a_map10",
        "PaSST": {"audio_encoder": "passt_s"},
        "text_aware": {"projection_dim": 2048, "dropout": 0.05},
    },
}
SMALL_THESIS = {
    "head": "linear",
    "select_by": "t2a_map10",
    "PaSST": {},
    "ATST": {},
    "text_aware": {"projection_dim": 512, "dropout": 0.05},
}
