"""A small random encoder of every family, and a padded batch of real text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import pair_rows

from tmkd.data.pairs import Pairs
from tmkd.models.batching import pad
from tmkd.models.encoders.find import find_encoder
from tmkd.models.tokenizer import PairTokenizer


def inputs(folder: Path, count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = pair_rows()[:count]
    tokenizer = PairTokenizer(folder, 64)
    encoded = tokenizer.encode([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows])
    ids, mask, types = pad(encoded.ids, encoded.type_ids, list(range(count)), tokenizer.pad_id)
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types)


TINY = {
    "vocab_size": 30527,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "pad_token_id": 0,
}
OURS = ("bert", "roberta", "xlm-roberta", "mpnet")
THEIRS = ("distilbert", "electra", "deberta-v2", "modernbert")


def tiny(model_type: str, folder: Path, **changes: object) -> Path:
    """A small random encoder of a family with a real tokenizer (MiniLM's word pieces)."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    special: dict[str, dict[str, Any]] = {
        "electra": {"embedding_size": 32},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
        "modernbert": {"cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102},
    }
    config = AutoConfig.for_model(model_type, **{**TINY, **changes}, **special.get(model_type, {}))
    model = AutoModel.from_config(config)
    for name, parameter in model.named_parameters():  # as they come most weights are nearly or exactly zero
        torch.nn.init.normal_(parameter, std=0.1, mean=1.0 if "norm" in name.lower() and "weight" in name else 0.0)
    if hasattr(getattr(model, "pooler", None), "dense"):
        torch.nn.init.zeros_(model.pooler.dense.bias)
    model.save_pretrained(folder)
    shutil.copy(find_encoder("builtin:minilm-l6") / "tokenizer.json", folder)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}  # read tokenizer.json as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def reranker(folder: Path, logits: int = 1, source: Path | None = None, **config: Any) -> Path:
    """A reranker as transformers saves it, with a head whose weights are large enough to matter."""
    from transformers import AutoModelForSequenceClassification

    base = source or tiny("bert", folder.parent / f"{folder.name}-tiny", max_position_embeddings=128)
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=logits, **config)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    return folder


PAIR_TEMPLATE = "{%- for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}relevant ?"


def decoder(folder: Path, kind: str = "qwen2", template: str | None = PAIR_TEMPLATE, **tokenizer: Any) -> Path:
    """A tiny causal language model with real word pieces, among them `yes` and `no`."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(3)
    sizes = {**TINY, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words = {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]", "model_max_length": 64, **tokenizer}
    made = PreTrainedTokenizerFast(tokenizer_file=str(find_encoder("builtin:minilm-l6") / "tokenizer.json"), **words)
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def transformers_logits(folder: Path, pairs: Pairs) -> Any:
    """What transformers' own model gives, pair by pair, for the same tokens."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = PairTokenizer(folder, 128).encode(pairs.questions, pairs.passages)
    rows = []
    for ids, types in zip(encoded.ids, encoded.type_ids, strict=True):
        tokens = {"input_ids": torch.tensor([list(ids)]), "token_type_ids": torch.tensor([list(types)])}
        rows.append(model(**tokens).logits[0].detach().numpy())
    return np.stack(rows)


def byte_tokenizer(folder: Path) -> Path:
    """Put a tokenizer of another kind into an encoder's folder: bytes, marked as MPNet and RoBERTa mark a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate([*special, *letters])}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
