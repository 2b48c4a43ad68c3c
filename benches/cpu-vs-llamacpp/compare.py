#!/usr/bin/env python3
"""The engine of Plexus beside llama.cpp on this machine's processors, interleaved in one run; prints Markdown tables.

  compare.py --llama-bench PATH --models FOLDER [--shapes ...] [--types ...] [--threads 1,2] [--rounds 3] [--plexus-benches PATH] [--json FILE]

FOLDER holds SHAPE-TYPE.gguf; what is missing is written by make_gguf.py (which needs: pip install gguf numpy; this program needs
Python alone).  Weights are random: speed does not depend on them.

Every round measures everything once, one process after the other, so that other work on the machine falls on all of them alike:
the memory's read bandwidth, our engine, llama.cpp with its weights repacked for this processor, and llama.cpp with them as in the
file.  A cell is the median over the rounds.  Compare the ratios; the absolute figures are this machine's at that hour.

How the sides are measured alike: 128 tokens decoded from an empty context, prompts of 128 and 512 tokens, each after a warm-up that
does not count.  Ours includes drawing the token, llama-bench's does not.  "First token" is the time of a whole process that loads the
model from the page cache and computes one token.  "Memory beyond" is the peak resident memory of the process of a prefill and a decode
less the size of the model's file (its tensors and some MB of tokenizer) and the KV cache.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
MIB = 1 << 20
# Layers, KV heads, head dimension.
KV_DIMS = {"qwen3-0.6b": (28, 8, 128), "qwen3-1.7b": (28, 8, 128), "llama-3.2-1b": (16, 8, 64), "qwen2.5-0.5b": (24, 2, 64)}


def run(command):
    """Standard output, seconds and peak resident bytes of a process; ends this program if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{err.read().decode(errors='replace')[-4000:]}")
        return out.read().decode(), seconds, usage.ru_maxrss * 1024


class Plexus:
    name = "plexus"

    def __init__(self, binary):
        self.binary = binary

    def command(self, file, threads, *more):
        return [self.binary, "engine", "--json", "--model", file, "--threads", threads, *more]

    def speeds(self, file, threads, tests):
        command = self.command(file, threads, "--runs", 1, "--decode", tests["decode"], "--prefill", ",".join(map(str, tests["prefill"])))
        text, _, peak = run(command)
        found = json.loads(text)
        result = {f"prefill {n}": rates[0] for n, rates in found["prefill_tokens_per_s"].items()}
        result["decode"] = found["decode_tokens_per_s"]["1"][0]
        result["memory beyond"] = (peak - file.stat().st_size - found["kv_bytes"]) / MIB
        return result

    def first_token(self, file, threads):
        return run(self.command(file, threads, "--first-token"))[1]


class Llama:
    def __init__(self, binary, repack):
        self.binary = binary
        self.repack = repack
        self.name = "llama.cpp" if repack else "llama.cpp norepack"

    def command(self, file, threads, *more):
        return [self.binary, "-m", file, "-t", threads, "--repack", int(self.repack), "-r", 1, "-o", "json", *more]

    def speeds(self, file, threads, tests):
        text, _, peak = run(self.command(file, threads, "-p", ",".join(map(str, tests["prefill"])), "-n", tests["decode"]))
        result, kv = {}, 0
        for test in json.loads(text):
            n_tokens = test["n_prompt"] + test["n_gen"]
            result["decode" if test["n_gen"] else f"prefill {test['n_prompt']}"] = test["avg_ts"]
            kv = max(kv, n_tokens * kv_bytes_per_token(file))
        result["memory beyond"] = (peak - file.stat().st_size - kv) / MIB
        return result

    def first_token(self, file, threads):
        return run(self.command(file, threads, "-p", 1, "-n", 0, "--no-warmup"))[1]


def kv_bytes_per_token(file):
    """Keys and values of a token in f16, which is what llama.cpp holds. Layers, KV heads and head dimension of the shape named by the file."""
    layers, kv_heads, head_dim = next(dims for shape, dims in KV_DIMS.items() if file.name.startswith(shape + "-"))
    return 2 * 2 * layers * kv_heads * head_dim


def bandwidth(binary, threads):
    """GB/s that memory is read at by so many threads."""
    text, _, _ = run([binary, "bandwidth", "--json", "--runs", 3, "--threads", threads])
    return statistics.median(json.loads(text)[str(threads)])


def measure(args, file, threads, engines, tests):
    """Values of every engine and row, one per round."""
    found = {engine.name: {} for engine in engines}
    memory = []
    for round_ in range(args.rounds):
        memory.append(bandwidth(args.plexus_benches, threads))
        for engine in engines if round_ % 2 == 0 else engines[::-1]:
            values = engine.speeds(file, threads, tests)
            values["first token"] = engine.first_token(file, threads)
            for row, value in values.items():
                found[engine.name].setdefault(row, []).append(value)
            print(".", end="", file=sys.stderr, flush=True)
    return found, memory


def cell(row, value):
    if row == "first token":
        return f"{value:.2f} s"
    return f"{value:.0f} MiB" if row == "memory beyond" else f"{value:.1f} tok/s"


def ratios(found, row):
    """How many times better ours is than the best peer, round by round; nothing without peers."""
    ours, *peers = found
    lower_is_better = row == "first token"
    best = (min if lower_is_better else max)(peers, key=lambda name: statistics.median(found[name][row]), default=None)
    pairs = zip(found[ours][row], found[best][row]) if best else []
    return [theirs / ours if lower_is_better else ours / theirs for ours, theirs in pairs]


def times(values):
    return f"**{statistics.median(values):.2f} ×**" if values else ""


def gb_per_s(file, found):
    """What decoding reads: the whole file for each token."""
    return statistics.median(found["plexus"]["decode"]) * file.stat().st_size / 1e9


def show(file, threads, found, memory, tests):
    """One table: a row per thing measured; the ratio above 1 is where ours is better."""
    names = list(found)
    print(f"\n### {file.stem}, {threads} {'thread' if threads == 1 else 'threads'} (memory read at {statistics.median(memory):.1f} GB/s)\n")
    print("| | " + " | ".join(names) + " | best peer: ours is | least to greatest ratio of a round |")
    print("|---" * (len(names) + 3) + "|")
    for row in ["decode", *(f"prefill {n}" for n in tests["prefill"]), "first token", "memory beyond"]:
        medians = {name: statistics.median(found[name][row]) for name in names}
        if row == "memory beyond":
            ratio, spread = f"{100 * medians[names[0]] * MIB / file.stat().st_size:.1f} % of the weights", ""
        else:
            values = ratios(found, row)
            ratio, spread = times(values), f"{min(values):.2f} to {max(values):.2f}" if values else ""
        print(f"| {row} | " + " | ".join(cell(row, medians[name]) for name in names) + f" | {ratio} | {spread} |")
    share = 100 * gb_per_s(file, found) / statistics.median(memory)
    print(f"\nDecoding reads the file at {gb_per_s(file, found):.1f} GB/s: {share:.0f} % of what memory gives.", flush=True)


def summarize(everything, models, tests):
    """One table of everything: ours, how many times the best peer it is, and what it leaves of the memory's bandwidth."""
    prefills = [f"prefill {n}" for n in tests["prefill"]]
    print("\n| model, threads | decode | of bandwidth | " + " | ".join(prefills) + " | load to first token | memory beyond |")
    print("|---" * (5 + len(prefills)) + "|")
    for one in everything:
        file, found = models / one["file"], one["values"]
        ours = {row: statistics.median(values) for row, values in found["plexus"].items()}
        rows = [f"{cell(row, ours[row])}, {times(ratios(found, row))}" for row in ["decode", *prefills, "first token"]]
        share = f"{100 * gb_per_s(file, found) / statistics.median(one['gb_per_s']):.0f} %"
        memory = f"{100 * ours['memory beyond'] * MIB / file.stat().st_size:.1f} %"
        print(f"| {file.stem}, {one['threads']} | " + " | ".join([rows[0], share, *rows[1:], memory]) + " |")


def into_page_cache(file):
    with file.open("rb", buffering=0) as stream:
        while stream.read(8 * MIB):
            pass


def file_of(args, shape, type_):
    file = args.models / f"{shape}-{type_}.gguf"
    if not file.exists():
        args.models.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        run([sys.executable, HERE / "make_gguf.py", shape, type_, part])
        part.rename(file)
    return file


def main():
    words = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plexus-benches", type=Path, help="default: built now, by cargo build --release -p plexus-benches")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's own bench, built with GGML_NATIVE=ON; without it only ours is measured")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--shapes", type=words, default=["qwen3-0.6b", "llama-3.2-1b"])
    parser.add_argument("--types", type=words, default=["Q4_K_M", "Q8_0", "BF16", "F16"])
    parser.add_argument("--threads", type=words, default=["1", "2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--prefill", type=words, default=["128", "512"])
    parser.add_argument("--json", type=Path, help="where every value of every round goes; what it has of other models or threads stays")
    parser.add_argument("--summary", action="store_true", help="measures nothing: one table of what is in the file of --json")
    args = parser.parse_args()
    tests = {"decode": args.decode, "prefill": [int(n) for n in args.prefill]}
    everything = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    if args.summary:
        return summarize(everything, args.models, tests)
    if args.plexus_benches is None:
        args.plexus_benches = build()
    for shape in args.shapes:
        for type_ in args.types:
            file = file_of(args, shape, type_)
            into_page_cache(file)
            engines = [Plexus(args.plexus_benches)]
            if args.llama_bench:
                # Only quantized weights are ever repacked.
                engines += [Llama(args.llama_bench, repack) for repack in ([True, False] if type_.startswith("Q") else [True])]
            for threads in map(int, args.threads):
                load = os.getloadavg()[0]
                found, memory = measure(args, file, threads, engines, tests)
                show(file, threads, found, memory, tests)
                print(f"Load average before it: {load:.1f}; {args.rounds} rounds.", flush=True)
                everything = [one for one in everything if (one["file"], one["threads"]) != (file.name, threads)]
                everything.append({"file": file.name, "threads": threads, "load": load, "gb_per_s": memory, "values": found})
                if args.json:
                    args.json.write_text(json.dumps(everything, indent=1))


def build():
    text = subprocess.run(
        ["cargo", "build", "--release", "-p", "plexus-benches", "--message-format=json"], cwd=HERE, stdout=subprocess.PIPE, check=True
    ).stdout
    messages = map(json.loads, text.splitlines())
    return Path(next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "plexus-benches"))


if __name__ == "__main__":
    main()
