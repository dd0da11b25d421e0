"""Training, and what was trained, from Python: `llmkit.train`, `llmkit.Run` and `llmkit.TrainedModel`."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config.load import Loaded
from llmkit.config.load import load as load_config
from llmkit.end_file import errors_recorded
from llmkit.errors import UserError

if TYPE_CHECKING:
    from llmkit.config.initial_model import Asked, StoredModel
    from llmkit.config.schema import Config
    from llmkit.inference import HeldOutLoss
    from llmkit.loop.hook import Hook
    from llmkit.model.base import Model
    from llmkit.monitor.sink import Sink
    from llmkit.weights import Weights

DETERMINISTIC = {"MKL_CBWR": "COMPATIBLE", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What MKL and cuBLAS must find in the environment when torch is imported, for `run.deterministic`."""


def load(
    path: str | Path, overrides: Sequence[str] = (), *, assumed: Mapping[str, Any] | None = None
) -> Loaded:
    """Reads a configuration file, with `section.key=value` overrides on top.

    Where it starts from weights (`train.init_from`) the settings of the model are read from these. assumed:
    values by their dotted keys, in place of defaults where nothing is given.
    Raises UserError that names every mistake at once, each with its file and line.
    """
    return load_config(path, overrides, _read_model, assumed)


def _read_model(asked: Asked) -> StoredModel:
    """As `llmkit.weights.read_model`, which imports torch: what that must find is set before."""
    if asked.deterministic:
        ask_for_determinism(os.environ)
    let_segments_grow(os.environ)
    from llmkit.weights import read_model

    return read_model(asked)


def train(
    loaded: Loaded,
    hooks: Sequence[Hook] = (),
    sinks: Sequence[Sink] = (),
    *,
    fresh: bool = False,
    allow_data_change: bool = False,
    quiet: bool = False,
    take_over: bool = False,
    branch_from: str | Path | None = None,
    data_position: Literal["keep", "new"] | None = None,
    anyway: bool = False,
) -> Run:
    """Trains the run that a configuration describes, from its newest good checkpoint; returns it.

    Works in one process, and in each process that torchrun, accelerate or SLURM starts. hooks: called in
    their order, after those of the configuration. sinks: get each row of metrics, on rank 0. fresh: raise
    where the run has checkpoints. allow_data_change: go on although the data are others than before. quiet:
    print errors, the end, and where the log is, and nothing else. take_over: ask another process that has
    the run to stop, then go on. branch_from: begin a new run with this checkpoint of another one, such as
    runs/demo@1000. data_position: whether such a branch reads on where that run stood ("keep", the default)
    or from the beginning ("new"). anyway: start although a step cannot fit into memory by estimate.

    The run it returns may have been stopped before its end: `Run.done` tells. Raises UserError for mistakes
    in the configuration, RunFault where the run cannot go on, HookError for a bug of a hook, and
    AlreadyReported in a process whose error another one has reported for all.
    """
    for name, given in (("hooks", hooks), ("sinks", sinks)):
        if not isinstance(given, Sequence):
            raise UserError(f"train: {name} must be a list, not {type(given).__name__}; put it into [...]")
    if loaded.config.run.deterministic:
        ask_for_determinism(os.environ)
    let_segments_grow(os.environ)
    from llmkit.loop.options import Options
    from llmkit.train import train as run_training

    branch = None if branch_from is None else str(branch_from)
    with errors_recorded(os.environ):
        run_training(
            loaded, Options(fresh, allow_data_change, quiet, take_over, branch, data_position, anyway),
            started=time.monotonic(), environment=os.environ, hooks=hooks, sinks=sinks,
        )  # fmt: skip
    return Run(Path(loaded.config.run.dir) / loaded.config.run.name)


def let_segments_grow(environment: MutableMapping[str, str]) -> None:
    """Sets how PyTorch takes memory of a GPU, before torch is imported, unless the user has set it.

    Segments that grow leave fewer gaps between tensors of changing sizes (evaluation, checkpoints, gathered
    weights). Tensors in them cannot be handed to other processes everywhere, which nothing here does.
    """
    if not any(environment.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def ask_for_determinism(environment: MutableMapping[str, str]) -> None:
    """Sets what `run.deterministic` needs in the environment; warns where torch is imported already."""
    if "torch" in sys.modules and environment.get("MKL_CBWR") != DETERMINISTIC["MKL_CBWR"]:
        warnings.warn(
            "run.deterministic: torch was imported before, so matrix products on a CPU may be rounded "
            "otherwise in another process; set MKL_CBWR=COMPATIBLE in the environment before Python starts",
            stacklevel=3,
        )
    environment.update(DETERMINISTIC)


class TrainedModel:
    """A trained model in a folder.

    path: a run folder (its newest good checkpoint is taken), a checkpoint, an import, or a folder in Hugging
    Face's format. ema: take the moving average of the weights, of a run with `train.ema`. The methods raise
    UserError where there is none.
    """

    def __init__(self, path: str | Path, *, ema: bool = False) -> None:
        self.path, self.ema = Path(path), ema

    def model(self, device: str | None = None, precision: str = "auto") -> Model:
        """The model in evaluation mode. device: as torch names it; default: the GPU, if any."""
        from llmkit.inference import load_for_use

        return load_for_use(self._weights(), device, precision)[0]

    def generate(
        self, prompt: str, max_new_tokens: int = 100, *, temperature: float = 0.8, top_k: int = 0,
        top_p: float = 1.0, seed: int = 0,
    ) -> str:  # fmt: skip
        """The prompt and what the model makes of it; temperature 0 takes the likeliest token."""
        from llmkit.generation.sampling import Sampling
        from llmkit.generation.text import stream_text
        from llmkit.inference import load_for_use
        from llmkit.prompts import text_prompt

        model, tokenizer = load_for_use(self._weights())
        asked = text_prompt(tokenizer, prompt, False)
        sampling = Sampling(temperature, top_k, top_p, seed=seed)
        return prompt + "".join(stream_text(model, tokenizer, asked, max_new_tokens, sampling))

    def evaluate(
        self, data: str | None = None, precision: str = "auto", note: Callable[[str], None] = print
    ) -> HeldOutLoss:
        """The held-out loss. data: other text, as `llmkit evaluate --data` takes it.

        It must be named for a model that no run of llmkit made.
        """
        from llmkit.inference import evaluate_weights

        return evaluate_weights(self._weights(), precision, data, note)

    def _weights(self) -> Weights:
        from llmkit.weights import open_weights

        return open_weights(self.path, ema=self.ema)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


class Run(TrainedModel):
    """A run's folder: its settings, its record, its checkpoints, and the model of the newest one.

    path: a run folder. ema: see `TrainedModel`. Raises UserError where there is none.
    """

    def __init__(self, path: str | Path, *, ema: bool = False) -> None:
        super().__init__(path, ema=ema)
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: this is no run folder, as it has no config.yaml")

    @property
    def config(self) -> Config:
        """The settings of its last start, all of them."""
        return load_config(self.path / "config.yaml").config

    @property
    def done(self) -> bool:
        """Whether it has reached its end."""
        return (self.path / "DONE").exists()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, in order: training rows have `loss`, evaluations `eval_loss`."""
        return self._rows("metrics.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The rows of events.jsonl: starts, saves, stops, faults."""
        return self._rows("events.jsonl")

    @property
    def media(self) -> list[dict[str, Any]]:
        """What is no number: tables, histograms and images, as `llmkit.media` describes them."""
        from llmkit.monitor.media import read_media

        return read_media(self.path)

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of its checkpoints, the oldest first."""
        from llmkit.checkpoint.read import folders

        return folders(self.path / "checkpoints")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        from llmkit.monitor.jsonlines import JsonLines

        return [dict(row) for row in JsonLines(self.path / name).rows()]
