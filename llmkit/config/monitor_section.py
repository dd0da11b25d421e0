"""Settings of what is recorded of a run, and where it is shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import Entry, NonNegative, Positive, Section


class Wandb(Section):
    """Weights & Biases, a mirror of metrics.jsonl."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = what WANDB_MODE or WANDB_DISABLED says; without them online where an API key is found, else
    offline."""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] = "llmkit"
    """Project of the run; where it is not given, WANDB_PROJECT's."""
    entity: str | None = None
    """Team or user; where it is not given, WANDB_ENTITY's, else the key's."""
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Name that is shown; where it is not given, WANDB_NAME's, else that of the run folder."""
    tags: list[Annotated[str, Field(pattern=r"^[^,]{1,64}$")]] = []
    """Tags; where they are not given, WANDB_TAGS', separated by commas."""
    group: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Group that the run is shown in; where it is not given, WANDB_RUN_GROUP's."""
    job_type: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Kind of the run, as in "train"; where it is not given, WANDB_JOB_TYPE's."""
    notes: str | None = None
    """A text about the run; where it is not given, WANDB_NOTES'."""
    artifacts: list[Literal["checkpoint", "checkpoint_files", "report"]] = []
    """What is added at the end: where the last checkpoint lies, with its checksum; its files; the report."""
    alerts: bool = True
    """W&B sends messages on what somebody should know at once: a fault, a stop, the end."""


class Cost(Section):
    """Prices, from which the cost of the run follows."""

    per_device_hour: Annotated[float, Field(ge=0.0)] | None = None
    """Price of an hour of one device: a process's GPU, or its CPU."""
    per_kwh: Annotated[float, Field(ge=0.0)] | None = None
    """Price of a kilowatt-hour, where energy is not part of `per_device_hour`."""
    currency: Annotated[str, Field(pattern=r"^\S{1,8}$")] = "USD"
    """The currency of both, as in USD."""


TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio"
]  # fmt: skip


class Monitor(Section):
    """What is recorded and where it is shown."""

    log_every: Positive = 10
    """Steps between rows of metrics.jsonl."""
    statistics_every: NonNegative = 100
    """Steps between measurements of gradients, weights, updates and activations of each layer, and of the
    loss by position in the document; 0 = none."""
    spike_threshold: Annotated[float, Field(ge=0.0)] = 6.0
    """A loss or gradient norm so many robust standard deviations above those of the steps before it is
    recorded as the event loss_spike; 0 = never."""
    spike_window: Annotated[int, Field(ge=10)] = 100
    """Steps that it is compared with."""
    dead_expert: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """An expert that gets less than this share of the mean load of its layer's experts, in all steps between
    two rows, is recorded as the event dead_experts; 0 = never."""
    collapsed_router: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """A router whose loads are spread less than this is recorded as the event router_collapsed. The spread is
    0 where all tokens go to the same experts and 1 where all get as many: (n - num_experts_per_tok) /
    (num_experts - num_experts_per_tok), n being exp of the entropy of the loads. 0 = never."""
    log_samples: bool = False
    """Each rank writes the position and the hash of every row that it trains on, into samples/."""
    sample: str | None = None
    """A prompt to continue at the end of the run; default: none."""
    samples: list[str] = []
    """Prompts to continue by 64 tokens at each evaluation, as a table in media.jsonl: by the likeliest
    tokens, and by drawn ones."""
    wandb: Wandb = Wandb()
    """Weights & Biases."""
    trackers: list[TrackerName] = []
    """Other trackers that get the rows of metrics.jsonl too, each by a package of its name."""
    profile_steps: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    """The first and the last step that PyTorch's profiler records, into profile/ in the run folder."""
    profile_ranks: list[NonNegative] = [0]
    """The processes whose steps it records."""
    cost: Cost = Cost()
    """What the run costs."""
    pue: Annotated[float, Field(ge=1.0)] = 1.0
    """Power usage effectiveness: energy that the building draws for each unit that its computers use."""
    grid_gco2_per_kwh: Annotated[float, Field(ge=0.0)] | None = None
    """Grams of CO2 a kilowatt-hour of the grid."""
    report: bool = True
    """Write report.html, a page on the run, into the run folder when the run ends or is stopped."""
    sinks: list[Entry] = []
    """Further destinations of the rows of metrics.jsonl, registered by plugins."""
