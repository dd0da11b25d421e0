"""The tokenizer of a run that goes on: that of its checkpoint, whose weights know no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmkit.checkpoint.read import Checkpoint, folders, load
from llmkit.config.load import Loaded
from llmkit.config.resume import Difference
from llmkit.config.schema import BPE_VOCAB_SIZE, Config
from llmkit.data.tokens.make_tokenizer import make_tokenizer, read_template
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import RunFault, UserError
from llmkit.hf.tokenizer_files import note_on_template
from llmkit.loop.resume import changed_settings, settings_of
from llmkit.weights import CheckpointWeights, Weights, look_at

SECTION = "data.tokenizer"


def tokenizer_of_run(checkpoint: Checkpoint, loaded: Loaded) -> Tokenizer:
    """The tokenizer in the checkpoint; none is trained, whatever the sources are now.

    A file, and what other settings name, is compared with it. The chat template is that of the settings.
    Raises UserError where the settings ask for another tokenizer.
    """
    stored = CheckpointWeights(checkpoint).tokenizer()
    spec = loaded.config.data.tokenizer
    changed = [
        difference
        for difference in changed_settings(checkpoint, loaded).all
        if difference.path.startswith(f"{SECTION}.")
    ]
    asked: Tokenizer | None = None
    unlike = [difference for difference in changed if difference.path != f"{SECTION}.chat_template"]
    if spec.type == "init_from":
        if unlike:
            raise _refused(checkpoint, unlike, "")
    elif spec.type == "bpe":
        size = spec.vocab_size or BPE_VOCAB_SIZE
        before = settings_of(checkpoint).data.tokenizer
        if before.type == "bpe" and (before.vocab_size or BPE_VOCAB_SIZE) == size:
            unlike = [difference for difference in unlike if difference.path != f"{SECTION}.vocab_size"]
        if unlike:
            raise _refused(checkpoint, unlike, "")
    elif changed or spec.type == "file":
        asked = make_tokenizer(spec, ())
        if asked.hash != stored.hash:
            raise _refused(checkpoint, changed, f" (hash {stored.hash}, now {asked.hash})")
    if (template := read_template(spec)) is not None:
        stored.chat_template = template
    elif any(difference.path == f"{SECTION}.chat_template" for difference in changed):
        stored.chat_template = None if asked is None else asked.chat_template
    return stored


def tokenizer_of_folder(loaded: Loaded, report: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer with which the run that the settings name would go on, or which comes with the weights
    that it would start from; None where the settings alone decide.

    So `llmkit data` makes and shows what that run reads. Where the run would be refused, `report` gets why.
    """
    root = Path(loaded.config.run.dir) / loaded.config.run.name / "checkpoints"
    found = folders(root)
    if not found:
        if (path := loaded.config.train.init_from) is None:
            return None
        return tokenizer_of_weights(look_at(Path(path)), loaded.config, report)
    try:
        tokenizer = tokenizer_of_run(load(found[-1]), loaded)
    except (UserError, RunFault) as error:
        report(f"data: this is not for the run in {root.parent}: {error}")
        return None
    report(f"data: with the tokenizer of {found[-1]}, which the run of this name keeps")
    return tokenizer


def tokenizer_of_weights(
    weights: Weights, config: Config, note: Callable[[str], None]
) -> Tokenizer | None:
    """The weights' tokenizer, with the chat template of the settings; None where these name another.

    note: gets a line on a template of its own that is not for it.

    Raises UserError where the weights come without one.
    """
    if config.data.tokenizer.type != "init_from":
        return None
    try:
        tokenizer = weights.tokenizer()
    except UserError as error:
        raise UserError(f"{error}; name the tokenizer of the weights under {SECTION}") from error
    if (template := read_template(config.data.tokenizer)) is not None:
        tokenizer.chat_template = template
    elif (line := note_on_template(tokenizer)) is not None:
        note(line)
    tokenizer.open_as_documents()
    return tokenizer


def check_same_ids(tokenizer: Tokenizer, weights: Weights) -> None:
    """Raises UserError where ids of this tokenizer stand for other text than in the weights' own."""
    try:
        own = weights.tokenizer().vocabulary
    except UserError:
        return  # there is none to compare with
    for token, id in sorted(tokenizer.vocabulary.items(), key=lambda item: item[1]):
        if own.get(token, id) != id:
            raise UserError(
                f"{SECTION}: {tokenizer.origin} is another tokenizer than that of {weights.path}: the token "
                f"{token!r} has the id {id}, and {own[token]} there; take the weights' own ({SECTION}.type: "
                "init_from)"
            )


def _refused(checkpoint: Checkpoint, changed: list[Difference], other: str) -> UserError:
    what = "; ".join(map(str, changed)) or f"{SECTION}.path: that file has another content now"
    return UserError(
        f"{checkpoint.path} was trained with another tokenizer than {SECTION} asks for{other}: {what}. "
        "Its token ids would mean other text: put the old tokenizer back, or start a new run under another "
        "run.name"
    )
