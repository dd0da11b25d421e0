"""The model of a description: ours, or a registered one."""

from __future__ import annotations

from collections import Counter

from llmkit.config.custom_model import AnyModel
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.base import Model, ModelContext
from llmkit.model.gpt import GPT
from llmkit.model.vocabulary import VocabularyLayer
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.mesh import ALL_EXPERTS, ExpertParallel, Mesh, TensorParallel
from llmkit.parallel.placement import REPLICATED, Shard, of_experts, placement
from llmkit.parallel.slices import box_size, full_box


def build_model(
    spec: AnyModel,
    tp: TensorParallel | None = None,
    operators: Operators = TORCH,
    activation_checkpointing: str = "none",
    activation_checkpointing_every: int = 1,
    loss_terms: LossTerms = CROSS_ENTROPY,
    context: ContextParallel = WHOLE_ROWS,
    experts: ExpertParallel = ALL_EXPERTS,
    mlp_tile: int = 0,
    offload_activations: bool = False,
) -> Model:
    """The model on the current device, with unset weights; the arguments are those of `ModelContext`.

    context: the ranks that have pieces of the same rows. experts: those over which experts are dealt out.
    Both, mlp_tile and offload_activations are of our own model.

    Raises UserError where a registered class makes something that llmkit cannot use (see `checked_model`).
    """
    tp = tp or TensorParallel()
    how = (operators, tp, activation_checkpointing, activation_checkpointing_every, loss_terms)
    if isinstance(spec, ModelShape):
        model: Model = GPT(spec, *how, None, context, experts, mlp_tile, offload_activations)
    else:
        made_for = ModelContext(spec.vocab_size, spec.max_position_embeddings, *how)
        model = checked_model(spec.component.make(spec.section(), made_for), made_for)
    if tp.size > 1 or experts.size > 1:
        check_placements(model, tp.size > 1)
    return model


def checked_model(model: object, context: ModelContext) -> Model:
    """A registered model as llmkit can use it. Raises UserError, which names the class, for any other."""
    name = type(model).__name__
    if not isinstance(model, Model):
        raise UserError(f"{name} is no llmkit.Model; make it a subclass")
    persistent = set(dict(model.named_buffers())) & set(model.state_dict())
    if persistent:
        raise UserError(
            f"{name} has persistent buffers, which no checkpoint keeps ({', '.join(sorted(persistent))}): "
            "make them parameters, or register what the constructor makes again with persistent=False"
        )
    if not dict(model.named_parameters()):
        raise UserError(f"{name} has no parameters, so there is nothing to train")
    names = Counter(part.name for each in model.parameter_slices().values() for part in each)
    if twice := [part for part, count in names.items() if count > 1]:
        raise UserError(f"{name} has two parameters that hold the tensor {twice[0]}; name one otherwise")
    model.__dict__.setdefault("vocab_size", context.vocab_size)
    model.__dict__.setdefault("context_length", context.sequence_length)
    return model


def check_placements(model: Model, shared: bool = True) -> None:
    """Asserts that each parameter of a sharded model is placed as its slices are, and summed as engines do.

    A wrong placement would give a wrong norm or gradient, and no error. shared: whether there are several
    tensor-parallel ranks.
    """
    slices = model.parameter_slices()
    vocabulary = {id(each.weight) for each in model.modules() if isinstance(each, VocabularyLayer)}
    for name, parameter in model.named_parameters():
        stated = placement(parameter)
        dealt = isinstance(stated["expert"], Shard)
        dims = {
            dim
            for each in slices[name]
            if not (dealt and box_size(each.box) == 0)  # of an expert that another rank holds
            for dim, (held, full) in enumerate(zip(each.box, full_box(each.shape), strict=True))
            if held != full
        }
        if shared and id(parameter) in vocabulary:
            dims = {0}  # a small vocabulary may lie on one rank
        summed = of_experts(0).summed if dealt else REPLICATED.summed
        assert stated.summed == summed, f"{name}: no engine sums gradients over {stated.summed}"
        along = stated["tensor"]
        placed = {along.dim} if shared and isinstance(along, Shard) else set()
        assert dims == placed, f"{name} is sharded along {dims} by its slices, and {placed} by its placement"


def tensor_parallel_of(spec: AnyModel, mesh: Mesh, sequence_parallel: bool) -> TensorParallel:
    """The tensor-parallel ranks as a model sees them; only ours shares key and value heads between ranks.

    Raises UserError where so many cannot share the model.
    """
    if mesh["tensor"].size > 1 and (why := _not_shared(spec, mesh["tensor"].size)):
        raise UserError(
            f"{mesh['tensor'].size} processes cannot share this model: {why}; let another number of them "
            "share it (--tensor-parallel, parallel.tensor_parallel_size), or 1"
        )
    heads = spec.num_key_value_heads if isinstance(spec, ModelShape) else mesh["tensor"].size
    return mesh.tensor_parallel(heads, sequence_parallel)


def _not_shared(spec: AnyModel, size: int) -> str:
    """Why `size` tensor-parallel ranks cannot share a model of ours; "" = they can."""
    if not isinstance(spec, ModelShape):
        return ""  # the layers of which it is made know
    heads, groups = spec.num_attention_heads, spec.num_key_value_heads
    sharing = max(1, size // groups)
    rules = [
        (heads % size == 0, f"its {heads} heads are not divisible by {size}"),
        (spec.intermediate_size % size == 0, f"its MLP's width {spec.intermediate_size} is not divisible"),
        (spec.expert_width % size == 0, f"its experts' width {spec.expert_width} is not divisible"),
        (
            (spec.moe.shared_expert_intermediate_size or 0) % size == 0,
            f"its shared expert's width {spec.moe.shared_expert_intermediate_size} is not divisible",
        ),
        (groups % size == 0 or size % groups == 0, f"its {groups} key and value heads cannot be dealt out"),
        (spec.head_dim % sharing == 0, f"a head's width {spec.head_dim} is not divisible by {sharing}"),
    ]
    return next((why for good, why in rules if not good), "")
