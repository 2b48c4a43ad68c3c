#!/usr/bin/env python3
"""Write a large model and small ones that guess what it says: rightly, or as seldom as is wished.

  make_pair.py TYPE FOLDER [--shape tinyllama] [--draft-layers 1] [--noise 0,0.05,...] [--seed N]

FOLDER gets target-TYPE.gguf, of the whole shape, and one draft-TYPE-NOISE.gguf for each noise.
Random models never say the same, so the large one is made to say what the small one does, at its own cost: its first layers are those of the
small one, and what the others give to the sum of all layers (attn_output, ffn_down) is zero. They are computed like any others: a product does
not look at its values. The noise of a draft is the standard deviation of factors around 1 at its last norm, so that its logits are those of the
large model and an error beside each. "opposite" is the large model's norm with its sign turned: what is likely becomes unlikely.
Both norms are scaled so that the likeliest token has a probability of about 0.7, as in a model that has learned something.
Needs: pip install gguf numpy.
"""
import argparse
import pathlib
import zlib

import numpy as np

from make_gguf import FTYPE, SHAPES, data, tensor_type, tensors, write

# How much steeper the logits are than those of weights as they are drawn.
STEEP = 6.0


def layer(name):
    """The number of a tensor's layer; -1 where it belongs to none."""
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("type", choices=FTYPE)
    ap.add_argument("folder", type=pathlib.Path)
    ap.add_argument("--shape", choices=SHAPES, default="tinyllama")
    ap.add_argument("--draft-layers", type=int, default=1)
    ap.add_argument("--noise", default="0,0.05,0.1,0.2,0.4,opposite")
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    shape = SHAPES[a.shape]
    n_layers = shape[1]
    todo = [(n, s, tensor_type(n, s, a.type, n_layers)) for n, s in tensors(shape)]

    def values(name, dims, t):
        x = data(name, dims, t, a.seed)
        if name == "output_norm.weight":
            return x * np.float32(STEEP)
        if layer(name) >= a.draft_layers and name.endswith(("attn_output.weight", "ffn_down.weight")):
            return np.zeros_like(x)  # all formats: a scale of zero, or a value of zero
        return x

    a.folder.mkdir(parents=True, exist_ok=True)
    write(a.folder / f"target-{a.type}.gguf", f"{a.shape} that says what its drafts do", shape, a.type, todo, values)
    small = (shape[0], a.draft_layers, *shape[2:])
    for noise in a.noise.split(","):

        def disturbed(name, dims, t, noise=noise):
            x = values(name, dims, t)
            if name != "output_norm.weight":
                return x
            if noise == "opposite":
                return -x
            rng = np.random.default_rng([a.seed, zlib.crc32(b"noise")])
            return x * (1 + float(noise) * rng.standard_normal(dims)).astype(np.float32)

        own = [tensor for tensor in todo if layer(tensor[0]) < a.draft_layers]
        write(a.folder / f"draft-{a.type}-{noise}.gguf", f"{a.draft_layers} layers of {a.shape}", small, a.type, own, disturbed)


if __name__ == "__main__":
    main()
