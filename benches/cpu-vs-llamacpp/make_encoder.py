#!/usr/bin/env python3
"""Write a folder with a random-weight text encoder of a real model's shape (speed does not depend on the weight values).

  make_encoder.py SHAPE FOLDER [--seed N]

SHAPE: a key of SHAPES below.  Its vocabulary has every word of three letters, so a text of n such words is n tokens and two more.
Needs: pip install numpy.
"""
import argparse
import itertools
import json
import string
from pathlib import Path

import numpy as np

# layers, hidden, heads, ffn, context
SHAPES = {"bge-small": (12, 384, 12, 1536, 512), "bge-base": (12, 768, 12, 3072, 512), "minilm-l6": (6, 384, 12, 1536, 512)}
VOCAB = 30522
STD = 0.02


def tensors(shape):
    """Name and shape of every tensor, as transformers names them."""
    layers, d, _, ff, context = SHAPES[shape]
    yield "embeddings.word_embeddings.weight", (VOCAB, d)
    yield "embeddings.position_embeddings.weight", (context, d)
    yield "embeddings.token_type_embeddings.weight", (2, d)
    yield from norm("embeddings.LayerNorm", d)
    for i in range(layers):
        p = f"encoder.layer.{i}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield p + name + ".weight", (d, d)
            yield p + name + ".bias", (d,)
        yield from norm(p + "attention.output.LayerNorm", d)
        yield p + "intermediate.dense.weight", (ff, d)
        yield p + "intermediate.dense.bias", (ff,)
        yield p + "output.dense.weight", (d, ff)
        yield p + "output.dense.bias", (d,)
        yield from norm(p + "output.LayerNorm", d)


def norm(name, d):
    yield name + ".weight", (d,)
    yield name + ".bias", (d,)


def write_weights(path, shape, seed):
    """A safetensors file: the length of the header, the header in JSON, the values."""
    rng = np.random.default_rng(seed)
    header, values, end = {}, [], 0
    for name, dims in tensors(shape):
        value = np.ones(dims) if name.endswith("LayerNorm.weight") else rng.standard_normal(dims) * STD
        values.append(value.astype("<f4").tobytes())
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [end, end + len(values[-1])]}
        end += len(values[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values))


def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    words = ["".join(word) for word in itertools.product(letters, repeat=3)]
    pieces = special + list(letters) + ["##" + letter for letter in letters] + words
    pieces += [f"[unused{i}]" for i in range(VOCAB - len(pieces))]
    added = [{"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, piece in enumerate(special)]
    cls, sep = [{"SpecialToken": {"id": piece, "type_id": 0}} for piece in ("[CLS]", "[SEP]")]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [cls, text, sep],
            "pair": [cls, text, sep, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {piece: {"id": piece, "ids": [pieces.index(piece)], "tokens": [piece]} for piece in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    layers, hidden, heads, ff, context = SHAPES[args.shape]
    args.folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": VOCAB, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": ff, "max_position_embeddings": context, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))
    (args.folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    write_weights(args.folder / "model.safetensors", args.shape, args.seed)


if __name__ == "__main__":
    main()
