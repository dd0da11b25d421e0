"""Every setting of a run: its type, its default, what it means.

The text under a field is its documentation: `llmkit config --keys` prints it, error messages
quote it. Names are Hugging Face's where Hugging Face has one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.ema_section import Ema
from llmkit.config.faults_section import Faults
from llmkit.config.lora_section import Lora
from llmkit.config.model_section import Model
from llmkit.config.monitor_section import Monitor
from llmkit.config.optimizer_section import Optimizer, Schedule
from llmkit.config.preference_section import Dpo
from llmkit.config.section import Entry, NonNegative, Positive, Section
from llmkit.config.task_section import EvaluateTasks

BPE_VOCAB_SIZE = 4096
"""Tokens of a trained tokenizer, unless said otherwise."""

BYTES_VOCABULARY = 257
"""Tokens of the tokenizer of type bytes: the bytes, and end-of-text."""

BPE_LARGEST = 2**24
"""Tokens of the largest tokenizer that is trained."""


PLUGIN = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
"""Name of a module, as in my_package.models."""


RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What the name of a run may be."""


class Run(Section):
    """Which run this is."""

    name: Annotated[str, Field(pattern=RUN_NAME)] = "run"
    """Name of the run; its folder is `run.dir`/`run.name`."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: NonNegative = 0
    """Seed of the initial weights, of dropout and of the order of the data."""
    deterministic: bool = False
    """Bit-equal results on the same machine (slower: about half the matrix rate in fp32 on a CPU)."""


class Tokenizer(Section):
    """How text becomes tokens."""

    type: Literal["bpe", "bytes", "file", "hub", "init_from"] = "bpe"
    """bpe = byte-level BPE trained on the sources; bytes = one token a byte; file = a local
    tokenizer.json; hub = a model's tokenizer by its hub id; init_from = that of the weights which
    train.init_from names, the default with these."""
    vocab_size: Annotated[int, Field(ge=BYTES_VOCABULARY, le=BPE_LARGEST)] | None = None
    """Size to train a bpe tokenizer to, end-of-text included (only for bpe; default 4096)."""
    pattern: Literal["llmkit", "gpt2", "llama3"] | None = None
    """Rule by which text is split before merges (only for bpe): llmkit's own, the default, needs the fewest
    tokens for code; those of GPT-2 and Llama 3 are known to programs such as llama.cpp."""
    path: str | None = None
    """The tokenizer.json (only for file). The names of its tokens and its chat template are read from the
    files beside it, as from the hub: tokenizer_config.json, special_tokens_map.json, chat_template.jinja."""
    name: str | None = None
    """The hub id, such as openai-community/gpt2 (only for hub)."""
    revision: str | None = None
    """Commit or tag of the hub repository (only for hub)."""
    end_of_text: str = "<|endoftext|>"
    """The token between documents; it must exist in a file or hub tokenizer."""
    control_tokens_in_text: bool = False
    """Text that spells a special token, such as end-of-text, becomes that token; otherwise it stays text."""
    chat_template: str | None = None
    """File with the Jinja template that makes text of chats; default: that of the hub, or of the files beside
    the tokenizer.json, else ChatML."""


PRETOKENIZED = ("shards", "megatron")
"""Types of sources that hold tokens, which are read as they are."""


class Source(Section):
    """A collection of documents."""

    type: Literal["stdlib", "text", "jsonl", "parquet", "arrow", "hub", "shards", "megatron"]
    """stdlib = the Python interpreter's own library, a file a document; text = files; jsonl = a JSON
    record a line; parquet, arrow = a record a row; hub = a dataset of the Hugging Face hub; shards = a
    folder of token shards; megatron = a .bin and an .idx file of Megatron-LM. Plugins may bring others."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """Name in messages and file names; default: the type and the index in the list."""
    path: str | list[str] | None = None
    """A file, a folder, a glob pattern or a URL (https, s3, gs, hf), or a list of them; relative to the
    working directory. Text and jsonl may be compressed (.gz, .zst). For shards the folder with
    index.json, for megatron the common beginning of the two names."""
    dataset: str | None = None
    """The dataset's hub id, or a folder that is laid out like one (only for hub)."""
    subset: str | None = None
    """The dataset's configuration (only for hub)."""
    split: str = "train"
    """The dataset's split (only for hub)."""
    revision: str | None = None
    """Commit or tag of the dataset (only for hub)."""
    live: bool = False
    """Tokenize while training instead of before: starts at once, needs no disk."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Share of the rows drawn from this source, relative to the other sources; data.curriculum may
    change it."""
    max_epochs: Positive | None = None
    """How often the source may be read as a whole; a run that needs more is refused, or, with a live source,
    ends when all of it was read so often. Default: no limit."""
    record: Literal["text", "chat", "prompt_completion", "preference", "ids"] = "text"
    """What a record holds: a text; a chat, of which the model learns the assistant's words; a prompt and
    its completion, of which it learns the completion; a prompt with a chosen and a rejected answer (for
    `train.objective: dpo`); ids of tokens."""
    text_field: str = "text"
    """The field of a record that holds the text."""
    messages_field: str = "messages"
    """The field with a chat: a list of {role, content}."""
    prompt_field: str = "prompt"
    """The field with the prompt. Of preferences it may be absent where the answers are chats that begin
    with it."""
    completion_field: str = "completion"
    """The field with the completion."""
    chosen_field: str = "chosen"
    """The field with the answer that is preferred: a string, or a list of {role, content}."""
    rejected_field: str = "rejected"
    """The field with the answer that is not preferred, of the same kind as the other one."""
    ids_field: str = "input_ids"
    """The field with token ids of data.tokenizer; an end-of-text behind them is not needed."""
    separator: str | None = None
    """Splits a text file into documents; default: a file is a document (only for text)."""
    heldout_path: str | None = None
    """Shards with the held-out documents (only for shards)."""


def default_source_name(type: str, index: int) -> str:
    """What a source without a name is called: its type and its index in the list."""
    return f"{type}-{index}"


class Stage(Section):
    """Weights that hold from a step on."""

    step: Positive
    """The first step that draws its rows with these weights."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0.0)]], Field(min_length=1)]
    """Name of a source: its weight. A source that is not named keeps the weight it had."""


class Data(Section):
    """What the model reads, in which order."""

    tokenizer: Tokenizer = Tokenizer()
    """How text becomes tokens."""
    sources: Annotated[list[Source], Field(min_length=1)]
    """The collections of documents to train on."""
    curriculum: list[Stage] = []
    """Changes of the sources' weights in the course of training."""
    sequence_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens a row. Of preferences: tokens of the prompt with one of its answers; longer ones are left out,
    and counted."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """concatenate = one document after the other; best_fit = in the order in which as few documents as
    possible are cut by a row's end (planned when shards are built; live sources are concatenated)."""
    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Fraction of the documents that is held out for evaluation: every n-th one, n being 1 / fraction,
    rounded; 0 = none. Of a live source at most 256 documents."""
    document_masks: bool = False
    """Positions attend only within their own document."""
    errors: Literal["skip", "replace", "raise"] = "skip"
    """What to do with a record that cannot be used (broken JSON, no such field, not UTF-8, a chat that the
    template refuses, token ids outside the vocabulary): skip = leave it out; replace = the same, but put
    U+FFFD for bytes that are not UTF-8; raise = stop. Counted in all cases."""
    cache_dir: str = "data-cache"
    """Where tokenizers and token shards are kept."""
    stream_shards: Annotated[int, Field(ge=1, le=65_536)] = 48
    """Parts of a live source that are read side by side. With a multiple of the data-parallel processes
    none of them tokenizes what another one does."""
    shuffle_window: Positive = 64
    """Documents of a lane that are shuffled among each other."""
    workers: NonNegative | Literal["auto"] = "auto"
    """Processes that tokenize live sources, per rank; 0 = a thread of the training process. auto = half of
    the cores that the rank has, at most 4."""
    stall_seconds: Annotated[float, Field(gt=0.0)] = 300.0
    """Waiting this long for a source ends the run with a message that names it."""

    @property
    def has_pairs(self) -> bool:
        """Whether a row is a pair of sequences, one with the chosen answer, one with the rejected one."""
        return any(source.record == "preference" for source in self.sources)

    @property
    def sequences_per_row(self) -> int:
        """Sequences that a model is given for a row."""
        return 2 if self.has_pairs else 1

    @property
    def row_length(self) -> int:
        """Tokens that a row takes of the stream of its source: those of both sequences of a pair."""
        return self.sequence_length * self.sequences_per_row

    @property
    def heldout_every(self) -> int:
        """One document in this many is held out; 0 = none."""
        return round(1.0 / self.validation_fraction) if self.validation_fraction else 0


class Train(Section):
    """How long, on how much at once, in which precision."""

    objective: Literal["causal_lm", "dpo"] = "causal_lm"
    """What is learned: causal_lm = the next token; dpo = which of two answers is preferred
    (docs/finetuning.md)."""
    dpo: Dpo = Dpo()
    """Preference optimisation (only for the objective dpo)."""
    max_steps: Positive | None = None
    """Optimizer steps; where absent, `max_minutes` decides."""
    max_minutes: Annotated[float, Field(gt=0.0)] | None = None
    """Time for the whole command: the first steps are timed, and max_steps is chosen and recorded so
    that training, evaluation and the last checkpoint end in time. Where the machine gets slower or faster
    later, it is chosen anew, and the schedule's rest is gone through in the steps that are left; where less
    than half of them fit, the run is saved in time and ends with exit code 75, and the same command does the
    rest. Not used if max_steps is set."""
    global_batch_size: Positive = 32
    """Sequences a step, over all processes; with the objective dpo: pairs of them."""
    init_from: str | None = None
    """Folder with the weights that a new run starts from: a run, a checkpoint, an import or a folder in
    Hugging Face's format. The model's settings come from there. Default: random weights."""
    micro_batch_size: Positive | Literal["auto"] = "auto"
    """Sequences, or pairs, a forward pass and data-parallel rank; must divide those that it has a step."""
    gradient_clipping: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    z_loss: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Times log(sum of exp(logits))^2 is added to the loss of each target (PaLM: 1e-4), which keeps logits
    small; recorded as `z_loss`, not part of the recorded loss."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each target that is spread evenly over the vocabulary; what it adds is recorded as
    `label_smoothing`, not part of the recorded loss."""
    precision: Literal["auto", "bf16", "fp32", "fp8"] = "auto"
    """bf16 = bf16 weights with fp32 masters, moments, statistics, softmax, loss and accumulation;
    fp8 = bf16, with the products of the blocks' linear layers in 8 bits (GPUs from Ada and Hopper on);
    auto = bf16 where the device has units for it, else fp32."""
    lora: Lora = Lora()
    """Low-rank adapters."""
    ema: Ema = Ema()
    """Moving average of the weights."""
    max_nonfinite_steps: Positive = 10
    """A step with a non-finite gradient is skipped; this many in a row end the run."""


class Parallel(Section):
    """How the run is spread over its processes; never what it computes."""

    world_size: Positive | None = None
    """Processes of the whole run; a launch of another number is refused. Default: as many as there are."""
    layout: Literal["given", "auto"] = "given"
    """auto = what is not given of zero_stage, engine, tensor_parallel_size, context_parallel_size,
    expert_parallel_size, sequence_parallel, offload and activation_checkpointing is chosen at each start: the
    fastest for the processes and their device, by the estimates of `llmkit plan` (docs/plan.md). given = what
    is not given has its default."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = "auto"
    """What the data-parallel ranks share out instead of holding it each: 0 = nothing (DDP), 1 = masters
    and moments, 2 = gradients too, 3 = weights too (ZeRO); auto = what accelerate's configuration
    says, else 0."""
    engine: Literal["auto", "native", "deepspeed"] = "auto"
    """What trains: native = llmkit's own engine (stages 0 to 2), deepspeed = DeepSpeed (stages 1 to 3, and
    offload); auto = native at stages 0 and 1, and at stage 2 where experts are dealt out; DeepSpeed for all
    else, and from stage 1 on if accelerate's configuration is of the type DEEPSPEED."""
    tensor_parallel_size: Positive = 1
    """Processes that share each layer; what is left of their number, when `context_parallel_size` is divided
    out too, is data-parallel."""
    context_parallel_size: Positive = 1
    """Processes that share each row, every one with a piece of its tokens, for rows that are too long for one
    (docs/parallelism.md)."""
    context_parallel_form: Literal["auto", "ulysses", "ring"] = "auto"
    """How these compute attention: ulysses = each for some heads and the whole row, by all-to-all; ring =
    each for its own queries, while keys and values go around; auto = ulysses where the size divides a
    process's heads, else ring."""
    expert_parallel_size: Positive = 1
    """Processes over which the experts of a mixture are dealt out, of those that have other rows or other
    tokens of them; each token is sent to the processes that hold its experts (docs/parallelism.md)."""
    sequence_parallel: bool = False
    """Tensor-parallel processes also share the activations between the layers, along the sequence."""
    offload: Literal["none", "cpu"] = "none"
    """cpu = masters and moments lie in the host's memory, at stage 3 the weights too (stages 1 to 3)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What a block computes again in the backward pass instead of keeping it: selective = all but the
    results of matmuls and attention, full = everything."""
    activation_checkpointing_every: Positive = 1
    """With activation checkpointing: in every block, every second one, ..."""
    offload_activations: bool = False
    """With full activation checkpointing: the inputs of recomputed blocks lie in the host's memory from the
    forward to the backward pass. Without effect on a CPU, whose memory that is."""
    timeout_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    """After this long in one exchange of training a process gives up on the others; small messages, such as
    those around a save, may take an hour."""

    @property
    def ranks_of_a_row(self) -> int:
        """Processes that compute the same rows together: they share the layers, the tokens, or both."""
        return self.tensor_parallel_size * self.context_parallel_size


class OperatorForms(Section):
    """The form of each operator: one of docs/kernels.md or a registered one; auto = by `kernels.backend`."""

    linear: str = "auto"
    """Linear layers of the blocks."""
    norm: str = "auto"
    """RMSNorm and LayerNorm, with the residual sum before them."""
    rotation: str = "auto"
    """Rotary positions of queries and keys."""
    activation: str = "auto"
    """SwiGLU or GELU."""
    dropout_add: str = "auto"
    """Dropout, with the residual sum behind it."""
    attention: str = "auto"
    """Causal attention: sdpa (PyTorch's fused one; cudnn, flash, efficient: by this kernel; flash3, flash4:
    by this package), varlen (windows and documents without masks), blocks or matmul (products by blocks) and
    others."""
    head_loss: str = "auto"
    """Output head with the loss."""
    gradient_norm: str = "auto"
    """The norm of all gradients."""
    adamw: str = "auto"
    """AdamW's update."""
    muon: str = "auto"
    """Muon's update."""


class Kernels(Section):
    """How the heavy operators are computed; never what."""

    compile: bool | Literal["auto"] = "auto"
    """torch.compile; auto = where a compiler is at hand."""
    backend: Literal["auto", "triton", "torch"] = "auto"
    """auto = the best form of each operator, by device, types and sizes; triton = Triton kernels wherever
    there are any; torch = PyTorch alone. What `kernels.operators` names comes first."""
    mlp_tile: NonNegative = 0
    """Positions of a sequence for which the MLP of a block is computed at a time, and again in the backward
    pass, so that of a long row the input alone is kept; 0 = all at once (docs/parallelism.md)."""
    operators: OperatorForms = OperatorForms()


class Checkpoint(Section):
    """When to save, what to keep."""

    every_steps: NonNegative = 1000
    """Steps between checkpoints; 0 = only at the end."""
    every_minutes: Annotated[float, Field(ge=0.0)] = 30.0
    """Minutes between checkpoints; 0 = off."""
    keep_last: Positive = 3
    """How many checkpoints are kept, the newest ones."""
    keep_every: NonNegative = 0
    """Beside them, those of steps that this divides are kept for good; 0 = none of them."""
    keep_best: bool = False
    """Save where an evaluation finds a lower held-out loss than all before it, and keep that checkpoint until
    there is a better one; RUN@best names it."""
    background: bool = True
    """Write beside training, which waits for a copy of the state to host memory alone; off: for the disk."""
    copy_to: str | None = None
    """URL (s3, gs, https by PUT, file ...) beneath which each checkpoint is copied beside training, under the
    run's name; a start on an empty disk goes on from the newest copy. Default: no copies."""
    max_failed_saves: NonNegative = 10
    """Saves in a row that may fail, as on a full disk, before the run ends; 0 = any number."""


class Evaluate(Section):
    """The held-out loss during training."""

    every_steps: NonNegative = 0
    """Steps between evaluations; 0 = only at the end."""
    early_stopping: Positive | None = None
    """Stop after this many evaluations in a row without a better loss; default: never."""
    tasks: EvaluateTasks = EvaluateTasks()
    """Benchmarks."""


class Config(Section):
    """A whole run."""

    plugins: list[Annotated[str, Field(pattern=PLUGIN.pattern)]] = []
    """Python modules that are imported first, because they register components that the settings name."""
    run: Run = Run()
    model: Model = Model()
    data: Data
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    parallel: Parallel = Parallel()
    kernels: Kernels = Kernels()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    monitor: Monitor = Monitor()
    faults: Faults = Faults()
    hooks: list[Entry] = []
    """What plugins do in the course of the run, in this order."""
