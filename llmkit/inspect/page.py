"""The page of `llmkit inspect`: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.inspect.readings import Readings

_SIGNIFICANT = 4
"""Digits that numbers have in the page."""


def render(readings: Readings, tokenizer: Tokenizer, title: str, facts: Sequence[str]) -> str:
    """The page as HTML. title: what the model is called; facts: sentences on it and the numbers.

    No text of the prompt or the vocabulary can become markup or script: what is written into elements is
    escaped, what the script reads is JSON without "<". The page's own policy forbids all other scripts and
    every request.
    """
    style, script = (files("llmkit.inspect").joinpath(name).read_text() for name in ("page.css", "page.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    name = html.escape(title)
    known = "".join(f'<p class="quiet">{html.escape(fact)}</p>\n' for fact in facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: inside the model</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
{known}
<h2>Text</h2>
<p>Choose a token to see how the model came to predict it.</p>
<div class="modes">Colour:
<label><input type="radio" name="mode" value="loss" checked> loss (red: unexpected)</label>
<label><input type="radio" name="mode" value="attributions"> gradient x input for the chosen
token (green: made it likelier, red: less likely)</label>
<label><input type="radio" name="mode" value="attention"> attention of the chosen head</label>
</div>
<div class="text">{_text(readings, tokenizer)}</div>
<h2>Candidates by layer</h2>
<p class="quiet" id="asked"></p>
<p class="quiet">What the last norm and the head make of the residual stream after each block
(logit lens).</p>
<div class="scroll"><table>
<thead><tr><th>after</th><th>the token itself</th><th colspan="99">likeliest next tokens</th></tr></thead>
<tbody id="lens"></tbody>
</table></div>
<h2>Attention</h2>
<p class="quiet">A square a head: a row shows where a position looks, the first position on top and on the
left; grey is what it cannot see. The scale is that of the root.</p>
<div class="scroll"><div class="heads" id="heads"></div></div>
<p><strong id="which"></strong> <span class="quiet">(the red row is the position that predicts the chosen
token)</span></p>
<canvas id="large"></canvas>
<script type="application/json" id="data">{_json(_data(readings, tokenizer))}</script>
<script>{script}</script>
</body>
</html>
"""


def _text(readings: Readings, tokenizer: Tokenizer) -> str:
    """The tokens, and what the model finds likeliest after them, an element each."""
    controls = set(tokenizer.control_tokens.values()) | {tokenizer.end_of_text_id}
    parts = []
    for token in [*readings.tokens.tolist(), int(readings.targets[-1])]:
        kind = "token control" if token in controls else "token"
        parts.append(f'<span class="{kind}">{html.escape(tokenizer.decode([token]))}</span>')
    return "".join(parts[:-1]) + '<span class="quiet"> | next: </span>' + parts[-1]


def _data(readings: Readings, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the script reads; attention as a byte a weight, 255 = 1."""
    layers, heads = readings.attention.shape[:2]
    lens, targets = readings.lens, readings.targets.tolist()
    named = {*lens.candidates.flatten().tolist(), *targets}
    shares = (readings.attention * 255).round().to(torch.uint8).contiguous()
    return {
        "tokens": [_shown(tokenizer, token) for token in readings.tokens.tolist()],
        "names": {token: _shown(tokenizer, token) for token in sorted(named)},
        "targets": targets,
        "losses": _rounded(readings.losses),
        "most": math.log(tokenizer.vocab_size),
        "layers": layers,
        "heads": heads,
        "attention": base64.b64encode(shares.numpy().tobytes()).decode(),
        "attributions": _rounded(readings.attributions),
        "lens": {
            "ids": lens.candidates.tolist(),
            "shares": _rounded(lens.probabilities),
            "target": _rounded(lens.target_probability),
            "rank": lens.target_rank.tolist(),
        },
    }


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token for people, such that white space is seen."""
    shown = tokenizer.shown(token)
    return shown if shown.startswith("bytes:") else json.dumps(shown, ensure_ascii=False)


def _rounded(values: Tensor) -> Any:
    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return float(f"{value:.{_SIGNIFICANT}g}") if math.isfinite(value) else None

    return rounded(values.tolist())


def _json(document: Any) -> str:
    """JSON that ends no element of HTML and begins no comment."""
    text = json.dumps(document, separators=(",", ":"))  # ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
