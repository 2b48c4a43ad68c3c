"""The corpus: an endless stream of synthetic conversations, the same for the same seed."""

import argparse

import tasks

# How often each task comes in the first part of the training.
FIRST = dict(
    ood=0,
    greet=6,
    arith=12,
    arith2=8,
    think=3,
    capital=14,
    opposite=6,
    plural=3,
    past=3,
    trans=8,
    elem=3,
    spell=6,
    echo=6,
    count=4,
    lists=4,
    isa=4,
    compare=3,
    sort=3,
    cal=3,
    topic=4,
    js=5,
    memory=10,
    extract=6,
    persona=4,
    tool=6,
    code=2,
    story=14,
    unknown=4,
)
# In the second part: more of what is hard, and what to refuse.
SECOND = dict(FIRST, ood=16, arith2=16, isa=8, count=8, extract=10, echo=9, lists=6, sort=4)


def dialogs(seed, weights=FIRST):
    """Yields (task, conversation) for ever; some conversations are two or three tasks, one after the other."""
    tasks.RNG.seed(seed)
    names, shares = list(weights), list(weights.values())
    while True:
        name = tasks.RNG.choices(names, shares)[0]
        turns = getattr(tasks, name)()
        while len(turns) <= 4 and tasks.RNG.random() < 0.25 and turns[0]["role"] != "system":
            another = tasks.RNG.choices(names, shares)[0]
            if another not in ("persona", "tool"):  # these begin with a system prompt
                turns = turns + getattr(tasks, another)()
        yield name, turns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print some conversations of the corpus.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    args = parser.parse_args()
    stream = dialogs(args.seed)
    for _ in range(args.count):
        task, conversation = next(stream)
        print(f"[{task}]")
        for turn in conversation:
            print(f"  {turn['role']}: {turn['content']}")
