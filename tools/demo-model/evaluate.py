"""How often a trained folder gives exactly the expected answer, task by task, on conversations that it was not trained on."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus
import tasks

# Their answers are free, so there is nothing to compare.
FREE = ("lists", "story", "greet")
SEED = 987_654_321
LONGEST_ANSWER = 80


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40, help="conversations for each task")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.folder, padding_side="left")

    def answers(conversations):
        prompts = [
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in conversations
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        pad = tokenizer.pad_token_id
        outputs = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False, pad_token_id=pad)
        texts = (tokenizer.decode(row, skip_special_tokens=False) for row in outputs[:, inputs.input_ids.shape[1] :])
        return [text.split("<|im_end|>")[0].strip() for text in texts]

    tasks.RNG.seed(SEED)
    shares = {}
    for name in corpus.SECOND:
        if name in FREE:
            continue
        examples = [getattr(tasks, name)() for _ in range(args.count)]
        given = answers([turns[:-1] for turns in examples])
        right = [answer == turns[-1]["content"].strip() for answer, turns in zip(given, examples)]
        shares[name] = sum(right) / args.count
        print(f"{name:9} {shares[name]:4.0%}")
        for turns, answer, good in zip(examples, given, right):
            if not good:
                print(f"          {turns[-2]['content']!r}: {answer!r}, not {turns[-1]['content']!r}")
                break
    print(f"mean      {sum(shares.values()) / len(shares):.1%}")


if __name__ == "__main__":
    main()
