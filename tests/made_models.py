"""Small transformers models with random weights, in folders as the Hub would bring them."""

import shutil
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2TokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
)

from atr.encoders import text

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
SENTENCES = [
    "A dog barks in the distance while rain falls on a roof.",
    "Birds are singing and a man talks over the engine of a car.",
    "Waves crash, then somebody knocks at a wooden door twice.",
]


LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPELT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def bert(folder, spelt=False, **sizes):
    """A BertModel with MiniLM's vocabulary, or one that spells every word; `sizes` are fields of BertConfig."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    vocabulary = Path(folder) / "vocab.txt"
    if spelt:
        vocabulary.write_text("\n".join(SPELT) + "\n")
    else:
        shutil.copy(text.folder("minilm") / "vocab.txt", folder)
    words = len(Path(vocabulary).read_text(encoding="utf-8").splitlines())
    _save(folder, lambda: BertModel(BertConfig(vocab_size=words, **SIZES | sizes)))
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return Path(folder)


def roberta(folder, **sizes):
    """A RobertaModel with a vocabulary of its own; `sizes` are fields of RobertaConfig."""
    words = len(roberta_tokenizer(folder))
    config = {"vocab_size": words, "max_position_embeddings": 514, "type_vocab_size": 1, **SIZES}
    _save(folder, lambda: RobertaModel(RobertaConfig(**config | sizes)))
    return Path(folder)


def roberta_tokenizer(folder):
    """RoBERTa's tokenizer (byte-level BPE, <s> 0, <pad> 1, </s> 2) with pairs learnt from a few sentences."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    learner.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder, model_max_length=512).save_pretrained(folder)
    return RobertaTokenizerFast.from_pretrained(folder)


def gpt2(folder):
    """The configuration of a small GPT-2 and its tokenizer (byte-level BPE, "!" 0, "<|endoftext|>" last)."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, show_progress=False)
    learner.save_model(str(folder))
    tokenizer = GPT2TokenizerFast.from_pretrained(folder, pad_token=None)
    tokenizer.save_pretrained(folder)
    GPT2Config(vocab_size=len(tokenizer)).save_pretrained(folder)
    return tokenizer


def clap(folder, fused=False):
    """A ClapModel for clips of 1 s at 8 kHz, with its tokenizer and feature extractor, of LAION's two kinds."""
    words = len(roberta_tokenizer(folder))
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }
    config = ClapConfig(text_config={"vocab_size": words, **SIZES}, audio_config=audio, projection_dim=12)
    _save(folder, lambda: ClapModel(config))
    ClapFeatureExtractor(
        sampling_rate=8000,
        max_length_s=1,
        hop_length=80,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return Path(folder)


def _save(folder, build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build().save_pretrained(folder)
