"""`llmkit reference`: computes what training on preferences needs of the reference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from llmkit.config.load import Loaded
from llmkit.config.shape import ModelShape
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import PreparedData
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.inference import load_model
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.plan import Known, resolve_plan
from llmkit.plan.batch import choose_evaluation_batch
from llmkit.plan.precision import choose_precision
from llmkit.precision import PRECISIONS
from llmkit.preference.compute import Reference, compute_source
from llmkit.preference.reference import pairs_of, reference_path
from llmkit.weights import Weights, model_of, open_weights


def reference_command(
    loaded: Loaded,
    environment: Mapping[str, str],
    tokenizer_of: Callable[[Callable[[str], None]], Tokenizer | None] = lambda report: None,
) -> int:
    """Computes the log-probabilities of all pairs of a configuration, over the ranks of a launch.

    What is there is kept, also of a command that was killed. tokenizer_of: that of the run, given what takes
    lines for the user; None = the settings decide. Raises UserError and RunFault as training does.
    """
    config = loaded.config
    if config.train.objective != "dpo":
        raise UserError(
            f"reference: {loaded.settings.describe('train.objective')} needs no reference model; name a "
            "configuration with the objective dpo"
        )
    rank_info = rank_info_from_env(environment)
    layout = resolve_plan(loaded, Known(rank_info.world_size, read_accelerate(environment))).layout
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    with process_group(rank_info, timeout) as world:
        mesh = world.split(tensor=layout.tensor_parallel_size)
        report: Callable[[str], None] = print if mesh.rank == 0 else (lambda line: None)
        path = reference_path(loaded)
        weights = open_weights(path, mesh)
        digest = on_rank_zero(mesh, weights.digest)
        with fail_together(mesh):
            tokenizer = tokenizer_of(report)
            data = prepare(config.data, report, seed=config.run.seed, tokenizer=tokenizer)
            check_tokenizer(weights, data, loaded)
        check_same_on_all_ranks(mesh, {"data": str(data.fingerprint)})
        report(f"reference: {_template_line(data.tokenizer, loaded)}")
        sources = list(pairs_of(data, config, digest))
        there = on_rank_zero(mesh, lambda: ",".join(str(int(may_exist(one.folder))) for one in sources))
        missing = [one for one, found in zip(sources, there.split(","), strict=True) if found == "0"]
        if missing:
            reference = _load(weights, digest, loaded, mesh)
        for pairs in missing:
            compute_source(pairs, data, reference, mesh, report)
        for pairs in sources:
            report(f"reference: {pairs.folder} has the log-probabilities of the pairs of {pairs.name}")
    return 0


def _template_line(tokenizer: Tokenizer, loaded: Loaded) -> str:
    """How prompts became text."""
    named = "the tokenizer's chat template"
    if tokenizer.chat_template is None:
        return "prompts are texts, which stand as they are: no chat template is used"
    if loaded.config.data.tokenizer.chat_template is not None:
        named = loaded.settings.describe("data.tokenizer.chat_template")
    elif tokenizer.chat_template == CHATML:
        named = "ChatML"
    return f"prompts that are messages are put by {named}; those that are text stand as they are"


def check_tokenizer(weights: Weights, data: PreparedData, loaded: Loaded) -> None:
    """Raises UserError where the reference has another tokenizer than the pairs."""
    known = weights.tokenizer()
    if known.hash != data.tokenizer.hash:
        raise UserError(
            f"{weights.path}: the reference model has another tokenizer (hash {known.hash}) than the data "
            f"(hash {data.tokenizer.hash}): name the reference's as data.tokenizer, in {loaded.path}"
        )


def _load(weights: Weights, digest: str, loaded: Loaded, mesh: Mesh) -> Reference:
    config, spec, facts = loaded.config, model_of(weights), device_facts(mesh.device)
    if isinstance(spec, ModelShape) and config.data.sequence_length > spec.max_position_embeddings:
        raise UserError(
            f"{loaded.settings.describe('data.sequence_length')} is longer than the context of the reference "
            f"model, {spec.max_position_embeddings} tokens ({weights.path}); lower it"
        )
    used = choose_precision(config.train.precision, facts)
    if used.linear == "fp8":  # the same weights
        used = PRECISIONS["bf16"]
    with fail_together(mesh):
        model = load_model(weights, mesh.device, used, mesh)
    batch = choose_evaluation_batch(config, spec, used, facts)
    return Reference(weights, digest, model, batch, used.name)
