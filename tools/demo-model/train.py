"""Trains Pip and writes it as a model folder.

The schedule goes by steps, so one thread on one machine gives the same bits again. Progress is printed every ten steps.
"""

import argparse
import json
import queue
import random
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import corpus
from model import IGNORED, Llama, llama_config
from tokenizer import train_tokenizer

WARM_UP_STEPS = 60
# The rate never falls below this share of its peak.
LEAST_RATE = 0.03
# Batches hold conversations of like length, padded to a multiple of this.
LENGTH_STEP = 32
# Conversations that are sorted by length together.
POOL = 2048


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps")
    parser.add_argument("--init", type=Path, help="folder to go on from; then the rate falls from the first step on")
    parser.add_argument("--second", action="store_true", help="the second part's mixture of tasks")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=1536)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=1, help="one is faster than two on a busy machine, and repeatable"
    )
    return parser.parse_args()


class Encoder:
    """Conversations as token ids and targets."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
        self.newline = tokenizer.encode("\n").ids

    def encode(self, turns):
        """Ids, and for each id itself where the assistant speaks, IGNORED elsewhere."""
        ids, targets = [], []
        for turn in turns:
            head = [self.start] + self.tokenizer.encode(turn["role"] + "\n").ids
            body = self.tokenizer.encode(turn["content"], add_special_tokens=False).ids + [self.end]
            ids += head + body + self.newline
            learned = body if turn["role"] == "assistant" else [IGNORED] * len(body)
            targets += [IGNORED] * len(head) + learned + [IGNORED] * len(self.newline)
        return ids, targets


def padded(length):
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def batches(encoder, weights, seed, context, batch_tokens):
    """Yields (ids, targets shifted by one) for ever."""
    stream = corpus.dialogs(seed, weights)
    while True:
        pool = sorted((encoder.encode(next(stream)[1]) for _ in range(POOL)), key=lambda pair: len(pair[0]))
        groups, group = [], []
        for pair in pool:
            if len(pair[0]) > context:
                continue
            if group and (len(group) + 1) * padded(len(pair[0])) > batch_tokens:
                groups.append(group)
                group = []
            group.append(pair)
        random.Random(seed).shuffle(groups)
        for group in groups:
            length = padded(max(len(ids) for ids, _ in group))
            x = torch.full((len(group), length), encoder.end)
            y = torch.full((len(group), length), IGNORED)
            for row, (ids, targets) in enumerate(group):
                x[row, : len(ids)] = torch.tensor(ids)
                y[row, : len(targets) - 1] = torch.tensor(targets[1:])
            yield x, y


def in_background(iterator, ahead=8):
    """The same items in the same order, made on another thread."""
    waiting = queue.Queue(ahead)

    def fill():
        for item in iterator:
            waiting.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield waiting.get()


def rate_at(step, steps, going_on):
    """Share of the peak rate: a warm-up, then (from half way on, or at once when going on) a straight fall."""
    done = step / steps
    fall = 1 - done if going_on else min(1, 2 * (1 - done))
    return min(1, (step + 1) / WARM_UP_STEPS) * max(LEAST_RATE, fall)


def save(folder, model, config, end, pad):
    tensors = {name: value.detach().to(torch.bfloat16).contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = dict(eos_token_id=[end, pad], pad_token_id=pad, temperature=0.7, top_p=0.9, do_sample=True)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))


def main():
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.init:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (args.out / name).write_bytes((args.init / name).read_bytes())
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(args.out, args.vocab, args.context)
    encoder = Encoder(tokenizer)
    end, pad = encoder.end, tokenizer.token_to_id("<|endoftext|>")
    vocab_size = padded(tokenizer.get_vocab_size())
    config = llama_config(args.hidden, args.layers, args.heads, args.kv_heads, args.ffn, vocab_size, args.context)
    config |= dict(bos_token_id=None, eos_token_id=end, pad_token_id=pad)
    model = Llama(config).to(device)
    if args.init:
        model.load_state_dict(
            {name: value.float() for name, value in load_file(args.init / "model.safetensors").items()}
        )
    parameters = dict(model.named_parameters())
    print(
        f"{sum(p.numel() for p in parameters.values()) / 1e6:.3f}M parameters, vocabulary {vocab_size}, on {device}",
        flush=True,
    )

    matrices = [p for name, p in parameters.items() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in parameters.items() if p.dim() != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    weights = corpus.SECOND if args.second else corpus.FIRST
    stream = in_background(batches(encoder, weights, args.seed, args.context, args.batch_tokens))
    began, smooth = time.time(), None
    for step in range(args.steps):
        share = rate_at(step, args.steps, args.init is not None)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * share
        x, y = (tensor.to(device) for tensor in next(stream))
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if step % 10 == 9:
            print(f"step {step + 1}/{args.steps} loss {smooth:.4f} {time.time() - began:.0f} s", flush=True)
    save(args.out, model, config, end, pad)


if __name__ == "__main__":
    main()
