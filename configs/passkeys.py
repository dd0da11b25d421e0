"""Writes records that hide a number in filler and ask for it: what a model needs to learn the needle test.

    python configs/passkeys.py --length 192 --records 40000 --out data-cache/passkeys-192.jsonl

Each is {"text"}, or {"prompt", "completion"} with --record prompt_completion, of between a quarter of
--length and --length characters in all, with the number at any depth. They are the same every time. A
tokenizer of bytes makes as many tokens, and an end-of-text. docs/long-context.md trains on them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from llmkit.evaluation.haystack import record

SHORTEST = 4
"""The shortest record has this part of the longest."""


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--length", type=int, default=192, help="characters of a record at most")
    parser.add_argument("--records", type=int, default=40000)
    parser.add_argument(
        "--record", choices=("text", "prompt_completion"), default="text", help="as the source's setting"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    draw = random.Random(f"passkeys {options.seed} {options.length}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as file:
        for _ in range(options.records):
            length = draw.randint(options.length // SHORTEST, options.length - 1)
            prompt, completion = record(draw, length)
            apart = {"prompt": prompt, "completion": completion}
            fields = {"text": prompt + completion} if options.record == "text" else apart
            file.write(json.dumps(fields) + "\n")
    print(f"wrote {options.out}: {options.records:,} records")


if __name__ == "__main__":
    main()
