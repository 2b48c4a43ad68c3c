"""Writes jinja/golden.json anew: expressions of Jinja, each with what transformers makes of it, null where it fails. Run beside it."""

import json
import pathlib

import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

path = pathlib.Path(__file__).parent / "jinja" / "golden.json"
given = json.loads(path.read_text())


def rendered(template):
    try:
        return _compile_jinja_template(template).render(**given["variables"])
    except Exception:
        return None


def text(value):
    return json.dumps(value, ensure_ascii=False)


cases = ",\n".join(text([template, rendered(template)]) for template, _ in given["cases"])
reference = text(f"transformers {transformers.__version__}")
path.write_text(f'{{\n"reference": {reference},\n"variables": {text(given["variables"])},\n"cases": [\n{cases}\n]\n}}\n')
