"""What an engine is built on: device, precision, data and sizes, found before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.derive import accumulation_steps, derive, resolved_model
from llmkit.config.load import Loaded, check_start
from llmkit.config.schema import Config, Data
from llmkit.config.settings import Known
from llmkit.config.shape import ModelShape
from llmkit.config.show import show_derived
from llmkit.data.building.opened import Found
from llmkit.data.building.prepare import prepare
from llmkit.data.building.probe import find_remote
from llmkit.data.prepared import Prepared
from llmkit.data.sources.listing import File
from llmkit.data.sources.units import Unit
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.loop.device import choose_device, choose_micro_batch, choose_precision, make_deterministic
from llmkit.loop.resume import Options, check_same_model
from llmkit.loop.room import require_disk, require_memory
from llmkit.loop.run_tokenizer import tokenizer_of_run
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, on_rank_zero
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder


@dataclass(frozen=True)
class Start:
    """What is settled before the run folder is touched."""

    loaded: Loaded
    layout: Layout
    precision: str
    """As asked for; "auto" where the device decides."""
    mesh: Mesh
    options: Options
    local_size: int
    """Processes of this run on this host."""
    notes: tuple[str, ...] = ()
    """What of the launcher's configuration has no effect."""

    @property
    def config(self) -> Config:
        return self.loaded.config

    def known(self, tokenizer_size: int | None = None, holds_out: bool | None = None) -> Known:
        """What the launch, and later the data, add to the settings."""
        layout = self.layout
        return Known(layout.world_size, layout.zero_stage, layout.offload, tokenizer_size, holds_out)


@dataclass(frozen=True)
class Basis:
    """What an engine is built on."""

    device: torch.device
    precision: str
    data: Prepared
    shape: ModelShape
    micro_batch_size: int
    accumulation_steps: int


def lay_basis(
    start: Start, folder: RunFolder, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> Basis:
    """Prepares the data and settles sizes; everything that can be wrong is found here."""
    config, layout, mesh = start.config, start.layout, start.mesh
    remote = _find_remote(config.data, mesh)
    with fail_together(mesh):
        if config.run.deterministic:
            make_deterministic()
        device = choose_device()
        precision = choose_precision(start.precision, device)
        least = resolved_model(config, 1)  # a vocabulary that is not known yet adds to it
        _require_room(start, folder, least, device, precision)
        tokenizer = None if checkpoint is None else tokenizer_of_run(checkpoint, start.loaded)

        def accept(tokenizer: Tokenizer) -> None:  # before sources are built, which may take hours
            check_start(start.loaded, start.known(tokenizer.vocab_size))
            shape = resolved_model(config, tokenizer.vocab_size)
            if checkpoint is not None:
                check_same_model(checkpoint, shape)
            _require_room(start, folder, shape, device, precision)

        data = prepare(
            config.data, note, seed=config.run.seed, known=remote, tokenizer=tokenizer, accept=accept
        )
        check_start(start.loaded, start.known(data.tokenizer.vocab_size, data.heldout_targets > 0))
        shape = resolved_model(config, data.tokenizer.vocab_size)
        fitting = choose_micro_batch(config, shape, precision, device, layout)
    check_same_on_all_ranks(mesh, {"precision": precision, **_data_facts(data)})
    micro_batch_size = min(int(text) for text in mesh.all_gather_text(str(fitting)))
    with fail_together(mesh):
        derived = derive(
            config,
            vocab_size=data.tokenizer.vocab_size,
            data_parallel_size=mesh.data_size,
            micro_batch_size=micro_batch_size,
        )
        note(show_derived(derived).rstrip())
    accumulation = accumulation_steps(config, mesh.data_size, micro_batch_size)
    return Basis(device, precision, data, shape, micro_batch_size, accumulation)


def _require_room(
    start: Start, folder: RunFolder, shape: ModelShape, device: torch.device, precision: str
) -> None:
    require_memory(start.loaded, shape, start.layout, device, precision, start.local_size)
    require_disk(start.loaded, shape, folder)


def _find_remote(data: Data, mesh: Mesh) -> dict[str, Found]:
    """What rank 0 finds of sources that are not on local disks."""
    found = json.loads(on_rank_zero(mesh, lambda: json.dumps(find_remote(data))))
    return {
        place: Found([File(*file) for file in files], [Unit(*unit) for unit in units], mistake)
        for place, (files, units, mistake) in found.items()
    }


def _data_facts(data: Prepared) -> dict[str, str]:
    """What the data are known by, in words."""
    facts = {"tokenizer": data.tokenizer.hash}
    for source in data.fingerprint["sources"]:
        size = source["kind"] if source["tokens"] is None else f"{source['tokens']} tokens"
        what = f"{size}, digest {source['digest']}, held out {source['heldout']}"
        facts[f"data source {source['name']}"] = what
    return facts
