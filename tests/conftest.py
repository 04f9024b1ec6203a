"""What several tests need: story files, embedded models, a tiny encoder. Session-scoped; a skip says its reason."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from priorzero.utils import models

settings.register_profile("any machine", deadline=None)  # a slow one is no error in what is tested
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent

# Words that text games use often; the tiny encoder knows them whole and spells everything else.
WORDS = """
a all and are around at closed door down east examine from get go have here house i in inventory is
it lamp leaflet light look mailbox mat nothing north of off on open out put room see small south
sword take the there this to turn up wait west white window with you
"""


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


@pytest.fixture(scope="session")
def games_dir() -> Path:
    """The folder with story files: ``PRIORZERO_GAMES``, or ``shared/games`` beside the repository."""
    folder = Path(os.environ.get("PRIORZERO_GAMES") or ROOT.parent / "shared" / "games")
    if not any(folder.glob("*.z[1-8]")):
        pytest.skip(f"no story files in {folder}: set PRIORZERO_GAMES to a folder that has some")
    return folder


def _model(name: str) -> Path:
    try:
        return models.fetch(name)
    except models.ModelSourceError as error:
        pytest.skip(f"the embedded model {name} cannot be had: {error}")


@pytest.fixture(scope="session")
def encoder_path() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def llm_path() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT: 2 layers, width 32, 64 positions, WordPiece over ``WORDS`` and single letters."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits
    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *string.punctuation,
        *WORDS.split(),
        *letters,
        *(f"##{c}" for c in letters),
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    folder = tmp_path_factory.mktemp("tiny-encoder")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder
