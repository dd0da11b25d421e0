"""Examples that `--help` of each command shows, and under which heading a command is listed.

Text alone: every command imports it. A test parses each example with the parser of its command.
"""

from __future__ import annotations

COLUMNS = 80
"""Of the lines of examples, with what is said beside them."""

HEADINGS = {
    "train": "training",
    "generate": "trained models",
    "runs": "runs and their checkpoints",
    "doctor": "machines and clusters",
}
"""What stands above a command in `llmkit --help`: it and those behind it belong there."""

_DEMO = "configs/demo.yaml"

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (f"train {_DEMO}", "a model in five minutes"),
        ("generate runs/demo --prompt 'import os'", "what it has learnt"),
        ("config --keys optimizer", "settings, and what they mean"),
    ),
    "train": (
        (f"train {_DEMO}", "the same line again goes on where the run stopped"),
        (f"train {_DEMO} run.name=wide model.hidden_size=256", "other settings, another run folder"),
        (f"train {_DEMO} 'data.sources[0].weight=2'", "in a list: by number, or data.sources.NAME.weight"),
        ("train mine.yaml --from runs/demo@1000", "a branch of another run"),
    ),
    "new": (
        ("new small --depth 8", "small.yaml, sized by scaling rules"),
        ("new large --params 124m --data corpus/ --device h100 --gpus 8", ""),
    ),
    "config": (
        (f"config {_DEMO}", "every setting, its origin, and what follows from it"),
        ("config configs/models/llama-3.1-8b.yaml", "parameters and bytes of a model alone"),
        (f"config {_DEMO} train.max_steps=100 --json", "for programs"),
        ("config --keys data.tokenizer schedule", "settings and sections, explained"),
        ("config --schema > llmkit.schema.json", "for editors (docs/command-line.md)"),
    ),
    "plan": (
        ("plan configs/models/llama-3.1-8b.yaml --device h100 --nodes 8", "the best layouts, time and cost"),
        ("plan configs/recipes/gpt2-124m.yaml --device h100 --explain", "each formula with its numbers"),
    ),
    "data build": (
        (f"data build {_DEMO}", "a run does it by itself, too"),
        (f"data build {_DEMO} --plan", "sizes, time and disk beforehand"),
    ),
    "data verify": ((f"data verify {_DEMO}", ""),),
    "data inspect": (
        (f"data inspect {_DEMO} --count 1", "a row of each source, as the model sees it"),
        (f"data inspect {_DEMO} --step 100", "the rows of a step"),
    ),
    "reference": (("reference configs/dpo.yaml", ""),),
    "ladder": (("ladder large-ladder", "after its four runs"),),
    "generate": (
        ("generate runs/demo --prompt 'import os' --top-p 0.9 --max-new-tokens 60", ""),
        ("generate runs/sft --chat", "a conversation, until Ctrl-D"),
        ("generate qwen --prompt-file questions.jsonl --json", "a folder in Hugging Face's format"),
    ),
    "evaluate": (
        ("evaluate runs/demo", "what the run held out"),
        ("evaluate runs/demo@best --data other.txt", "another text"),
        ("evaluate runs/demo-llama --tasks arc_easy --limit 100", "a benchmark of lm-eval"),
    ),
    "serve": (("serve runs/sft --port 8000", "then http://127.0.0.1:8000/v1"),),
    "inspect": (("inspect runs/sft --prompt 'def area(radius):' --output page.html", ""),),
    "import": (("import qwen qwen-checkpoint", ""),),
    "export": (
        ("export runs/demo-llama demo-llama", "for transformers, checked"),
        ("export runs/lora lora-adapter --adapter", "for PEFT"),
    ),
    "runs": (("runs", "those in runs/"), ("runs /scratch/runs --sort loss", "")),
    "top": (("top runs/demo", "until q or Ctrl-C"), ("top runs/a runs/b --once", "")),
    "report": (
        ("report runs/demo", "writes runs/demo/report.html"),
        ("report runs/a runs/b --output both.html", "one page on both"),
    ),
    "checkpoint list": (("checkpoint list runs/demo", ""), ("checkpoint list runs/demo --json", "")),
    "checkpoint verify": (("checkpoint verify runs/demo@1000", ""),),
    "checkpoint diff": (("checkpoint diff runs/demo@500 runs/demo@1000", ""),),
    "checkpoint average": (
        ("checkpoint average runs/demo --last 3 --out averaged", "the newest three, all alike"),
        ("checkpoint average runs/demo --decay 0.9 --out averaged", "newer ones count more"),
    ),
    "checkpoint prune": (("checkpoint prune runs/demo --keep-last 1 --dry-run", "deletes nothing"),),
    "checkpoint save": (("checkpoint save runs/demo", ""),),
    "checkpoint copy": (("checkpoint copy runs/demo --to s3://bucket/runs", ""),),
    "checkpoint fetch": (("checkpoint fetch s3://bucket/runs/demo@1000 runs/demo", ""),),
    "sync": (("sync runs/demo", "what a run without network has kept"),),
    "doctor": (
        ("doctor", "devices, speed, disk, network, versions"),
        ("doctor --parity", "do all layouts train alike here?"),
        ("doctor --calibrate", "measures this CPU, for llmkit plan"),
    ),
    "submit": (
        ("submit mine.yaml --nodes 4 --gpus-per-node 8 --dry-run", "shows the script"),
        ("submit mine.yaml --gpus-per-node 8 --array optimizer.learning_rate=1e-3,3e-4", "a sweep"),
    ),
    "jobs": (("jobs", ""),),
    "launch-files": (("launch-files .", "configs/, launch/ and slurm/, as in the repository"),),
    "completion": (
        ("completion bash", "add to ~/.bashrc: source <(llmkit completion bash)"),
        ("completion zsh", "add to ~/.zshrc, after compinit: source <(llmkit completion zsh)"),
        ("completion fish", "llmkit completion fish > ~/.config/fish/completions/llmkit.fish"),
    ),
}
"""Of each command, without `llmkit`: a command line, and a word on it; "" = of llmkit itself."""


def example_text(command: str) -> str:
    """The examples of a command, a line each, as its help shows them; "" where there are none."""
    examples = EXAMPLES.get(command, ())
    lines = [(f"  llmkit {line}", note) for line, note in examples]
    beside = [len(line) + len(note) + 4 <= COLUMNS for line, note in lines]
    width = max((len(line) for (line, _), fits in zip(lines, beside) if fits), default=0)
    shown = []
    for (line, note), fits in zip(lines, beside):
        if note and not fits:
            shown.append(f"  # {note}:")
        at = min(width, COLUMNS - len(note) - 4)
        shown.append(f"{line:<{at}}  # {note}" if note and fits else line)
    return "examples:\n" + "\n".join(shown) if shown else ""
