"""The tokenizer against ids from the official code: `python tests/golden_tokenizer.py FILE.json`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from export.tokenizer import find_bpe_vocabulary, write_clip_tokenizer
from runtime.text import Tokenizer


def run(path: Path) -> tuple[int, int]:
    """(number of texts, number of texts whose ids or pooled position differ); prints those that differ.

    Raises:
        WeightsError: the official word list is not there.
    """
    golden = json.loads(Path(path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_clip_tokenizer(find_bpe_vocabulary(None), file)
        tokenizer = Tokenizer.from_file(file, golden["meta"]["context_length"])
    mismatches = 0
    for case in golden["cases"]:
        ids = tokenizer.encode([case["text"]])[0]
        if not np.array_equal(ids, case["ids"]) or int(ids.argmax()) != case["eot_pos"]:
            mismatches += 1
            print(f"{case['text']!r}\n  expected {case['ids']}\n  got      {ids.tolist()}")
    return len(golden["cases"]), mismatches


if __name__ == "__main__":
    cases, wrong = run(Path(sys.argv[1]))
    print(f"{cases} texts, {wrong} differ")
    sys.exit(1 if wrong else 0)
