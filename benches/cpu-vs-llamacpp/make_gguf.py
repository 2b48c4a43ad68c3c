#!/usr/bin/env python3
"""Write a random-weight GGUF of a real model shape (speed does not depend on the weight values).

  make_gguf.py SHAPE TYPE OUT [--vocab VOCAB.gguf | --merges] [--seed N]

SHAPE: a key of SHAPES below.  TYPE: F32 F16 BF16 Q8_0 Q4_0 Q4_K_M (the mix llama-quantize makes).
--vocab: a GGUF to copy the tokenizer.* keys from.  Without it, a byte-level tokenizer is written
(256 byte tokens, <|endoftext|>, and words that no text is read as but that print), so a bench needs no other file:
a prompt of n ASCII characters is n tokens, and every token of an answer is seen by the client.
--merges: words that come of merges instead, two for each (Llama 3 has 2.2, Qwen 3 has 1), for benches that open the file and give prompts as ids.
Needs: pip install gguf numpy.
"""
import argparse
import itertools
import zlib

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFValueType as V, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES

# arch, layers, hidden, heads, kv heads, head dim, ffn, vocab, context, rope base, norm eps (all tie embeddings)
SHAPES = {
    "qwen3-0.6b":   ("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, 1e-6),
    "qwen3-1.7b":   ("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 40960, 1e6, 1e-6),
    "llama-3.2-1b": ("llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5, 1e-5),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6, 1e-6),
    "small-qwen3":  ("qwen3", 2, 256, 4, 2, 64, 512, 151936, 40960, 1e6, 1e-6),
    "tinyllama":    ("llama", 22, 2048, 32, 4, 64, 5632, 32000, 8192, 5e5, 1e-5),
    "tiny-qwen3":   ("qwen3", 2, 256, 4, 2, 64, 512, 512, 1024, 1e6, 1e-6),
    "tiny-llama":   ("llama", 2, 256, 4, 2, 64, 512, 512, 1024, 5e5, 1e-5),
}
FTYPE = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16,
         "Q8_0": LlamaFileType.MOSTLY_Q8_0, "Q4_0": LlamaFileType.MOSTLY_Q4_0, "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M}
STD = 0.02
TEMPLATE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")


def tensors(shape):
    """(name, numpy shape) of every tensor; a 1-D one stays F32."""
    arch, layers, d, heads, kv, hd, ff, vocab, *_ = shape
    yield "token_embd.weight", (vocab, d)
    yield "output_norm.weight", (d,)
    if arch == "llama":
        yield "rope_freqs.weight", (hd // 2,)
    for i in range(layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", (d,)
        for n, rows in (("q", heads * hd), ("k", kv * hd), ("v", kv * hd)):
            yield p + f"attn_{n}.weight", (rows, d)
            if arch == "qwen2":
                yield p + f"attn_{n}.bias", (rows,)
        if arch == "qwen3":
            yield p + "attn_q_norm.weight", (hd,)
            yield p + "attn_k_norm.weight", (hd,)
        yield p + "attn_output.weight", (d, heads * hd)
        yield p + "ffn_norm.weight", (d,)
        yield p + "ffn_gate.weight", (ff, d)
        yield p + "ffn_up.weight", (ff, d)
        yield p + "ffn_down.weight", (d, ff)


def tensor_type(name, dims, want, layers):
    if len(dims) == 1:
        return T.F32
    if want != "Q4_K_M":  # llama-quantize gives a tied Q4_0 embedding Q6_K as well
        return T.Q6_K if want == "Q4_0" and name == "token_embd.weight" and dims[1] % 256 == 0 else T[want]
    t = T.Q4_K
    if name == "token_embd.weight":
        t = T.Q6_K
    elif name.endswith(("attn_v.weight", "ffn_down.weight")):
        i, e = int(name.split(".")[1]), layers // 8
        t = T.Q6_K if i < e or i >= 7 * layers // 8 or (i - e) % 3 == 2 else T.Q4_K
    if dims[1] % 256:
        t = {T.Q4_K: T.Q5_0, T.Q6_K: T.Q8_0}[t]
    return t


def blocks(rng, n, fields):
    """n quantized blocks as bytes; a field is (bytes) of random bits or an f16 constant."""
    parts = []
    for f in fields:
        if isinstance(f, int):
            parts.append(rng.integers(0, 256, (n, f), dtype=np.uint8))
        else:
            parts.append(np.full((n, 1), f, np.float16).view(np.uint8))
    return np.concatenate(parts, axis=1)


def data(name, dims, t, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name == "rope_freqs.weight":  # the llama3 rope scaling, factor 32
        wl = 2 * np.pi * 5e5 ** (np.arange(dims[0]) / dims[0])
        s = np.clip((8192 / wl - 1) / 3, 0, 1)
        return (1 / ((1 - s) / 32 + s)).astype(np.float32)
    if len(dims) == 1:
        return (rng.normal(0, STD, dims) if name.endswith("bias") else rng.normal(1, STD, dims)).astype(np.float32)
    if t in (T.F32, T.F16, T.BF16):
        x = rng.standard_normal(dims, dtype=np.float32) * STD
        if t == T.BF16:
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return x.astype(np.float16 if t == T.F16 else np.float32)
    size, nbytes = GGML_QUANT_SIZES[t]
    n = dims[0] * dims[1] // size
    b = {
        T.Q8_0: lambda: blocks(rng, n, [STD / 74, 32]),
        T.Q4_0: lambda: blocks(rng, n, [STD / 4.6, 16]),
        T.Q5_0: lambda: blocks(rng, n, [STD / 9.2, 4, 16]),
        T.Q4_K: lambda: blocks(rng, n, [STD / 200, 7.5 * STD / 200, 12, 128]),
        T.Q6_K: lambda: blocks(rng, n, [128, 64, 16, STD / 1365]),
    }[t]()
    assert b.shape[1] == nbytes, (t, b.shape)
    return b.reshape(dims[0], -1)


def word(i):
    """The i-th word, with the space before it (\u0120): aaaa, aaab, ..."""
    return "\u0120" + "".join(chr(97 + i // 26**k % 26) for k in (3, 2, 1, 0))


def merged_words(n):
    """n words of letters and spaces before them, and the merges that make them: two cuts of each into others."""
    letters = ["\u0120", *map(chr, range(97, 123))]
    words, merges, known = [], [], set(letters)
    longer = (a + b for k in (1, 2, 3) for a in [x for x in [*letters, *words] if len(x) == k] for b in letters)
    for x in itertools.islice(longer, n):
        merges += [f"{x[:i]} {x[i:]}" for i in range(1, len(x)) if x[:i] in known and x[i:] in known][:2]
        words.append(x)
        known.add(x)
    return words, merges


def byte_tokenizer(w, vocab, merged):
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte to character table
    extra = iter(range(256, 512))
    toks = [chr(b) if b in keep else chr(next(extra)) for b in range(256)]
    words, merges = merged_words(vocab - 258) if merged else ([word(i) for i in range(vocab - 258)], [])
    toks += ["<|endoftext|>", "~~"] + words
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(toks)
    w.add_token_types([1] * 256 + [3] + [1] * (vocab - 257))  # normal, control, normal
    w.add_chat_template(TEMPLATE)
    w.add_token_merges(["~ ~", *merges])  # llama.cpp wants one at least
    w.add_eos_token_id(256)


def copy_tokenizer(w, path):
    for f in GGUFReader(path).fields.values():
        if f.name.startswith("tokenizer."):
            w.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if f.types[0] == V.ARRAY else None)


def write(out, name, shape, want, todo, data_of, vocab_from=None, merged=False):
    """A GGUF of `todo`, (name, dims, type) of each tensor; `data_of` gives the values of one."""
    arch, layers, d, heads, kv, hd, ff, vocab, ctx, base, eps = shape
    w = GGUFWriter(out, arch)
    w.add_name(name)
    w.add_file_type(FTYPE[want])
    w.add_quantization_version(2)
    w.add_block_count(layers)
    w.add_context_length(ctx)
    w.add_embedding_length(d)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(hd)
    w.add_value_length(hd)
    w.add_rope_freq_base(base)
    w.add_layer_norm_rms_eps(eps)
    w.add_vocab_size(vocab)
    if arch == "llama":
        w.add_rope_dimension_count(hd)
    copy_tokenizer(w, vocab_from) if vocab_from else byte_tokenizer(w, vocab, merged)
    for n, s, t in todo:
        size, nbytes = GGML_QUANT_SIZES[t]
        total = int(np.prod(s)) // size * nbytes
        w.add_tensor_info(n, s, np.dtype(np.float32), total, raw_dtype=t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for n, s, t in todo:
        w.write_tensor_data(data_of(n, s, t))
    w.close()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("shape", choices=SHAPES)
    ap.add_argument("type", choices=FTYPE)
    ap.add_argument("out")
    vocabulary = ap.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocab")
    vocabulary.add_argument("--merges", action="store_true")
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    shape = SHAPES[a.shape]
    todo = [(n, s, tensor_type(n, s, a.type, shape[1])) for n, s in tensors(shape)]
    write(a.out, f"random {a.shape} seed {a.seed}", shape, a.type, todo, lambda n, s, t: data(n, s, t, a.seed), a.vocab, a.merges)


if __name__ == "__main__":
    main()
