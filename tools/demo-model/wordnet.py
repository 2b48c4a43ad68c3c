"""Words and sentences for users' turns, from WordNet where it is installed.

They stand only in turns that the loss leaves out, so nothing of WordNet is learned: they teach what to refuse.
Debian's package wordnet-base has the files; WORDNET_DIR names another folder.
"""

import functools
import os
import re
from pathlib import Path

from facts import ANIMALS, TOPICS


@functools.cache
def words_and_sentences():
    """Nouns that no task explains, and example sentences; a handful of each if WordNet is not there."""
    folder = Path(os.environ.get("WORDNET_DIR", "/usr/share/wordnet"))
    nouns, sentences = [], []
    for name in ("data.noun", "data.verb", "data.adj"):
        path = folder / name
        if not path.exists():
            continue
        for line in path.read_text(errors="ignore").splitlines():
            if line.startswith(" "):
                continue  # the licence
            fields, _, gloss = line.partition("|")
            word = fields.split()[4].replace("_", " ")
            if name == "data.noun" and word.isascii():
                nouns.append(word)
            sentences += re.findall(r'"([^"]{12,90})"', gloss)[:2]
            if len(sentences) % 3 == 0 and 15 < len(gloss) < 100:
                sentences.append(gloss.strip().split(";")[0])
    known = set(TOPICS) | set(ANIMALS)
    nouns = [word for word in nouns if word not in known]
    return nouns or ["quark", "treaty", "sonnet"], sentences or ["the wind was cold that day"]
