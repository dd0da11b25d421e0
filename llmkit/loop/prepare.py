"""The data and the complete plan of a run, found before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from pydantic import TypeAdapter

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.schema import Data
from llmkit.data.building.prepare import prepare
from llmkit.data.building.probe import find_remote
from llmkit.data.prepared import PreparedData
from llmkit.data.source import RemoteFiles
from llmkit.data.state import read_data_state
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.device import device_facts, make_deterministic
from llmkit.errors import UserError
from llmkit.loop.attention_choice import choose_attention
from llmkit.loop.initial_weights import StartingWeights
from llmkit.loop.launch import Launch
from llmkit.loop.resume import check_same_model
from llmkit.loop.room import disk_warning, memory_refusal, memory_warning, require_disk
from llmkit.loop.run_tokenizer import check_same_ids, tokenizer_of_run, tokenizer_of_weights
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan, resolve_plan
from llmkit.plan.overview import Line, overview
from llmkit.preference.reference import reference_path, with_reference
from llmkit.run_folder import RunFolder
from llmkit.weights import open_weights


def prepare_run(
    launch: Launch,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    initial: StartingWeights | None,
    note: Callable[[str], None],
    table: Callable[[Iterable[Line]], None],
) -> tuple[PreparedData, Plan]:
    """Prepares the data and completes the plan; everything that can be wrong is found here.

    initial: the weights that a new run starts from, where these are not random. table: shows the plan.
    """
    config, mesh, device = launch.config, launch.mesh, launch.mesh.device
    remote = _find_remote(config.data, mesh)
    reference = _reference_digest(launch, checkpoint)
    with fail_together(mesh):
        if config.run.deterministic:
            make_deterministic()
        facts = device_facts(device, config.kernels.compile is not False)
    free = min(int(text) for text in mesh.all_gather_text(str(facts.free_bytes)))
    known = replace(launch.known, device=replace(facts, free_bytes=free))
    with fail_together(mesh):
        # Any vocabulary only adds to what the smallest needs; a trained one may get fewer tokens than asked.
        _require_room(launch, folder, resolve_plan(launch.loaded, replace(known, tokenizer_size=1)))
        tokenizer = None
        if checkpoint is not None:
            tokenizer = tokenizer_of_run(checkpoint, launch.loaded)
        elif initial is not None:
            tokenizer = tokenizer_of_weights(initial.weights, config, note)

        def accept(tokenizer: Tokenizer) -> None:  # before sources are built, which may take hours
            plan = resolve_plan(launch.loaded, replace(known, tokenizer_size=tokenizer.vocab_size))
            if checkpoint is not None:
                check_same_model(checkpoint, plan.model)
            if initial is not None:
                check_same_ids(tokenizer, initial.weights)
                initial.fit(plan.model, adapts=plan.config.train.lora.rank > 0)
            _require_room(launch, folder, plan, note)
            step = 0 if checkpoint is None else checkpoint.step
            if warning := disk_warning(launch.loaded, plan, folder, step):
                note(warning)

        data = prepare(
            config.data, note, seed=config.run.seed, known=remote, tokenizer=tokenizer, accept=accept
        )
        if reference is not None:
            data = with_reference(data, launch.loaded, reference)
        known = replace(known, tokenizer_size=data.tokenizer.vocab_size, holds_out=data.heldout_targets > 0)
        plan = resolve_plan(launch.loaded, known)
    choice = choose_attention(plan, mesh, folder, checkpoint is not None, note)
    with fail_together(mesh):
        plan = resolve_plan(launch.loaded, replace(known, attention=choice))
        table(overview(plan))
    check_same_on_all_ranks(mesh, plan.facts() | _data_facts(data))
    return data, plan


def _reference_digest(launch: Launch, checkpoint: Checkpoint | None) -> str | None:
    """What tells the reference model of preferences from others; None where there is none. Collective.

    That of a run that goes on is the one that it began with: the model need not be there any more.
    """
    if launch.config.train.objective != "dpo":
        return None
    if checkpoint is not None:
        return read_data_state(checkpoint.state["data"]).fingerprint.reference
    return on_rank_zero(launch.mesh, lambda: open_weights(reference_path(launch.loaded)).digest())


def _require_room(
    launch: Launch, folder: RunFolder, plan: Plan, note: Callable[[str], None] = lambda text: None
) -> None:
    """Raises UserError where the plan cannot fit into memory, unless the run is to start all the same, and
    RunFault where its checkpoints do not fit onto the disk. note: is told of what may not fit."""
    device = launch.mesh.device
    refusal = memory_refusal(launch.loaded, plan, device, launch.local_size)
    if refusal is not None and not launch.options.anyway:
        raise UserError(refusal)
    if warning := refusal or memory_warning(plan, device, launch.local_size):
        note(warning)
    require_disk(launch.loaded, plan, folder)


def _find_remote(data: Data, mesh: Mesh) -> dict[str, RemoteFiles]:
    """What rank 0 finds of sources that are not on local disks."""
    kind = TypeAdapter(dict[str, RemoteFiles])
    found = on_rank_zero(mesh, lambda: kind.dump_json(find_remote(data)).decode())
    return kind.validate_json(found)


def _data_facts(data: PreparedData) -> dict[str, str]:
    """Digests of the data, which all ranks must have alike."""
    facts = {"tokenizer": data.tokenizer.hash}
    for source in data.fingerprint.sources:
        size = source.kind if source.tokens is None else f"{source.tokens} tokens"
        what = f"{size}, digest {source.digest}, held out {source.heldout}"
        facts[f"data source {source.name}"] = what
    return facts
