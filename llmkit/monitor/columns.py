"""Every column of metrics.jsonl: its name, unit and meaning, for docs, W&B, report and console."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Group = Literal["train", "eval", "speed", "memory", "data", "layers", "faults", "system"]
"""The section of a column in Weights & Biases."""
Row = Literal["training", "statistics", "evaluation", "tasks"]
"""The kind of row that has the column."""


@dataclass(frozen=True)
class Column:
    """A column, or a family of them: capitals in `name` stand for any text, as SOURCE in `loss/SOURCE`.

    unit: "" for a plain number; "share" is one from 0 to 1. meaning: one line. scope: over which steps and
    ranks it is taken, and when it is null or absent.
    """

    name: str
    unit: str
    group: Group
    meaning: str
    scope: str
    row: Row = "training"
    recorded: bool = False
    """Whether it comes by `Trainer.record`, as the model's extras do."""

    @property
    def is_family(self) -> bool:
        return self.name != self.name.lower()

    @property
    def prefix(self) -> str:
        """Of a family: what its names begin with, up to the first part in capitals."""
        return self.name[: next((i for i, letter in enumerate(self.name) if letter.isupper()), None)]

    def names(self, name: str) -> bool:
        """Whether `name` is this column, or one of this family."""
        if not self.is_family:
            return name == self.name
        return name.startswith(self.prefix) and len(name) > len(self.prefix)


STEP = "this step, all ranks"
MEAN = "mean since the last row, without evaluations and saves; null where all steps since then compiled"
SINCE = "since the last row, rank 0"
PARTS = f"{SINCE}, by the device's own time; null where the engine cannot tell (DeepSpeed)"
EXTRA = "mean over the steps since the last row, all ranks"
ROUTED = "all steps since the last row, all ranks, over resumes too, rows without a target left out"
TOTAL = "since the run's first start, over all its starts, rank 0"

COLUMNS = (
    Column("step", "steps", "train", "steps done", "since the run's first start", "training"),
    Column("tokens", "tokens", "train", "targets trained on (pairs, with the objective dpo)",
        "since the run's first start, all ranks"),
    Column("loss", "nats", "train", "mean loss a target of the global batch",
        f"{STEP}; null where it is not finite or nothing was a target"),
    Column("loss_mean", "nats", "train", "mean loss a target",
        "all steps since the last row, all ranks, over resumes too"),
    Column("loss/SOURCE", "nats", "data", "mean loss a target of one data source, where there are several",
        "all steps since the last row, all ranks, over resumes too; absent where the source had no target"),
    Column("loss_at/FROM-TO", "nats", "data",
        "mean loss a target at these positions of its document, or of its row without `data.document_masks`",
        f"{STEP}; absent where no target was there, and of pairs", "statistics"),
    Column("grad_norm", "", "train", "global L2 norm of the gradient before clipping",
        f"{STEP}; null where it is not finite or nothing was a target"),
    Column("grad_norm/LAYER", "", "layers", "L2 norm of the gradient of a layer before clipping",
        STEP, "statistics"),
    Column("weight_norm/LAYER", "", "layers", "L2 norm of the weights of a layer", STEP, "statistics"),
    Column("update_ratio", "share", "train", "L2 norm of the update over that of the weights, all parameters",
        STEP, "statistics"),
    Column("update_ratio/LAYER", "share", "layers", "the same of a layer", STEP, "statistics"),
    Column("activation_rms/LAYER", "", "layers", "root mean square of what a layer gives",
        f"{STEP}; rows without a target left out", "statistics"),
    Column("activation_max/LAYER", "", "layers", "largest magnitude in what a layer gives",
        f"{STEP}; rows without a target left out", "statistics"),
    Column("learning_rate", "", "train", "learning rate of the main parameter group", "this step"),
    Column("epochs", "", "data", "how often the data have been seen, all sources together",
        "since the run's first start, all ranks"),
    Column("epochs/SOURCE", "", "data", "how often one data source has been seen",
        "since the run's first start, all ranks"),
    Column("skipped", "", "faults", "true where a gradient that was not finite made the update void",
        f"{STEP}; else absent"),
    Column("no_targets", "", "faults",
        "true where no token of the global batch was a target: nothing was changed", f"{STEP}; else absent"),
    Column("skipped_total", "updates", "faults", "updates left out because of a gradient that was not finite",
        "up to this step, steps that were done again counted once"),
    Column("restarts", "starts", "faults", "starts of the run after its first one",
        "since the run's first start"),
    Column("step_seconds", "s", "speed", "time of a step", MEAN),
    Column("step_seconds_predicted", "s", "speed", "time of a step by the model of it (docs/plan.md)",
        "in rows of the first 50 steps of a start, where the device is known or calibrated"),
    Column("data_seconds", "s", "speed", "of it, waiting for a batch", f"rank 0; {MEAN}"),
    Column("tokens_per_second", "tokens/s", "speed", "tokens trained on a second, by the whole job",
        f"all ranks; {MEAN}"),
    Column("tokens_per_second_per_device", "tokens/s", "speed", "the same divided by the number of processes",
        MEAN),
    Column("mfu", "share", "speed",
        "model FLOPs utilization; attention counted as if every position saw its whole row",
        f"all ranks; {MEAN}, or the peak of the device is not known"),
    Column("mfu_causal", "share", "speed",
        "the same with what causal attention needs in its windows and documents, and without lookups",
        "as `mfu`, documents as in the rows of rank 0; null for registered models"),
    Column("hfu", "share", "speed", "`mfu` with the products that activation checkpointing computes again",
        "as `mfu`; absent where nothing is computed again"),
    Column("mfu_peak", "", "speed", "what utilization is measured against, in words", "one device"),
    Column("time/data", "s", "speed", "waiting for a batch", SINCE),
    Column("time/compile", "s", "speed", "steps in which torch.compile was at work", SINCE),
    Column("time/step", "s", "speed", "all other steps: forward, backward, update", SINCE),
    Column("time/evaluate", "s", "speed", "evaluations", SINCE),
    Column("time/save", "s", "speed", "waiting for checkpoints: to be copied, or written", SINCE),
    Column("time/start", "s", "speed", "from the command to the first step",
        f"{SINCE}; 0 but in the first row of a start"),
    Column("time/other", "s", "speed", "between two steps: hooks, rows, waiting for other ranks", SINCE),
    Column("time/communication", "s", "speed",
        "of `time/step`: gradients and weights of other ranks, as far as it is not hidden; without that of "
        "tensor, context and expert parallelism", f"{PARTS}, absent in a process alone"),
    Column("time/optimizer", "s", "speed", "of `time/step`: norm, clipping and update", PARTS),
    Column("elapsed_seconds", "s", "speed", "wall time, that between two starts included", TOTAL),
    Column("goodput", "share", "speed", "share of `elapsed_seconds` that was spent in steps which count",
        TOTAL),
    Column("lost/start", "s", "faults", "starts, up to their first step", TOTAL),
    Column("lost/compile", "s", "faults", "steps in which torch.compile was at work", TOTAL),
    Column("lost/data", "s", "faults", "waiting for a batch", TOTAL),
    Column("lost/evaluate", "s", "faults", "evaluations", TOTAL),
    Column("lost/save", "s", "faults", "waiting for checkpoints: to be copied, or written", TOTAL),
    Column("lost/other", "s", "faults", "hooks, rows, waiting for other ranks", TOTAL),
    Column("lost/redone", "s", "faults", "steps that no checkpoint held and that were done again", TOTAL),
    Column("lost/down", "s", "faults", "from the last record of a start to the next start", TOTAL),
    Column("peak_memory_gib", "GiB", "memory",
        "most memory in use: tensors on a GPU, the resident process on a CPU", "since the start, rank 0"),
    Column("reserved_memory_gib", "GiB", "memory", "most memory that PyTorch's allocator took from the GPU",
        "since the start, rank 0; null on a CPU"),
    Column("power_watts", "W", "system", "mean power of the devices",
        "since the last row, all hosts; null where no counter can be read"),
    Column("energy_kwh", "kWh", "system", "energy of the devices",
        "since the run's first start, as far as it was measured; null where no counter can be read"),
    Column("joules_per_token", "J", "system", "energy a token trained on",
        "since the last row, evaluations and saves included; null where no counter can be read"),
    Column("device_hours", "h", "system", "wall time of all starts, times their processes",
        "since the run's first start; of a start that was killed up to its last row"),
    Column("cost", "currency", "system", "`device_hours` and `energy_kwh` at the prices of `monitor.cost`",
        "since the run's first start; null where no price is given"),
    Column("co2_grams", "g", "system", "`energy_kwh` times `monitor.pue` and the grid intensity",
        "since the run's first start; null where either is not known"),
    Column("energy_source", "", "system", "where the energy is from: nvml (GPUs), rapl (CPUs), nvml+rapl",
        "null where no counter can be read"),
    Column("router_aux_loss", "nats", "train", "balance loss of the routers, times its coefficient",
        f"{EXTRA}; absent without experts", recorded=True),
    Column("router_z_loss", "nats", "train", "z loss of the routers, times its coefficient",
        "as `router_aux_loss`; absent where the coefficient is 0", recorded=True),
    Column("z_loss", "nats", "train", "z loss of the output head, times its coefficient",
        f"{EXTRA}; absent where the coefficient is 0", recorded=True),
    Column("label_smoothing", "nats", "train", "what smoothed labels add to the loss",
        f"{EXTRA}; absent where it is 0", recorded=True),
    Column("router_entropy", "nats", "train",
        "entropy of a router's probabilities of a token, mean of all; log(num_experts) where these are alike",
        f"{ROUTED}; absent without experts"),
    Column("expert_load_max", "", "train", "load of the expert with most tokens, over the mean of its layer",
        f"{ROUTED}; absent without experts"),
    Column("expert_load_min", "", "train", "the same of the expert with fewest tokens", f"{ROUTED}; absent "
        "without experts"),
    Column("expert_dropped", "share", "train", "choices of experts that were over their capacity",
        f"{ROUTED}; absent without `model.moe.capacity_factor`"),
    Column("router_entropy/LAYER", "nats", "layers", "`router_entropy` of a layer", STEP, "statistics"),
    Column("router_balance/LAYER", "", "layers",
        "balance loss of a router, without its coefficient; num_experts_per_tok where all loads are alike",
        STEP, "statistics"),
    Column("router_z/LAYER", "", "layers", "z loss of a router, without its coefficient", STEP, "statistics"),
    Column("expert_load_max/LAYER", "", "layers", "`expert_load_max` of a layer", STEP, "statistics"),
    Column("expert_load_min/LAYER", "", "layers", "`expert_load_min` of a layer", STEP, "statistics"),
    Column("expert_dropped/LAYER", "share", "layers", "`expert_dropped` of a layer",
        f"{STEP}; absent without `model.moe.capacity_factor`", "statistics"),
    Column("rewards/NAME", "", "train", "with the objective dpo: chosen, rejected, margin, and accuracy",
        "this step, all ranks; else absent"),
    Column("eval_loss", "nats", "eval", "held-out loss a target", "all held-out tokens, all ranks",
        "evaluation"),
    Column("eval_ema_loss", "nats", "eval", "the same of the moving average of the weights",
        "as `eval_loss`; with `train.ema.evaluate`, else absent", "evaluation"),
    Column("eval_perplexity", "", "eval", "exp of `eval_loss`; null where that is too large, and of pairs",
        "as `eval_loss`", "evaluation"),
    Column("eval_bits_per_byte", "bits", "eval", "bits a byte of the held-out text costs",
        "as `eval_loss`; null where the tokens stand for no text, and of pairs", "evaluation"),
    Column("eval_loss/SOURCE", "nats", "eval", "held-out loss of one data source, where there are several",
        "as `eval_loss`", "evaluation"),
    Column("eval_bits_per_byte/SOURCE", "bits", "eval", "the same in bits a byte of its text",
        "as `eval_bits_per_byte`", "evaluation"),
    Column("eval_loss_at/FROM-TO", "nats", "eval", "held-out loss at these positions, as `loss_at/FROM-TO`",
        "as `eval_loss`; absent of pairs", "evaluation"),
    Column("eval_rewards/NAME", "", "eval", "with the objective dpo: chosen, rejected, margin, and accuracy",
        "as `eval_loss`", "evaluation"),
    Column("eval/TASK/METRIC", "", "eval", "a metric of a task of lm-eval", "all ranks", "tasks"),
)  # fmt: skip

OWN_NAMES = tuple(column.name for column in COLUMNS if not (column.is_family or column.recorded))
"""Names that numbers recorded by others cannot have."""


def column_of(name: str) -> Column | None:
    """The column, or the family, that `name` belongs to; None for numbers that hooks and models record."""
    exact = next((column for column in COLUMNS if column.name == name), None)
    return exact or next((column for column in COLUMNS if column.is_family and column.names(name)), None)


def markdown() -> str:
    """The text of docs/metrics.md."""
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    yield from (
        "# Columns of metrics.jsonl",
        "",
        "All columns that llmkit writes, made from `llmkit/monitor/columns.py`. Capitals in a name stand for",
        "any text. Values that are not finite are null. The group is the section in Weights & Biases. Hooks",
        "and models record further numbers under names of their own.",
        "[When rows are written](design.md#metricsjsonl).",
    )
    titles: dict[Row, str] = {
        "training": "Training rows",
        "statistics": "Rows of statistics",
        "evaluation": "Rows of evaluations",
        "tasks": "Rows of tasks",
    }
    for row, title in titles.items():
        yield from ("", f"## {title}", "")
        yield "| column | unit | group | what | over which steps and ranks; when null |"
        yield "| --- | --- | --- | --- | --- |"
        for each in COLUMNS:
            if each.row == row:
                yield f"| `{each.name}` | {each.unit} | {each.group} | {each.meaning} | {each.scope} |"
