"""A first look from Python: train a small model, plot its loss, let it write.

The cells (`# %%`) run one by one in VS Code, Spyder and, through jupytext, in Jupyter; or all at once as
`python docs/examples/notebook.py`, from the root of a clone. Without matplotlib the plot is drawn in text.
"""

# %% Settings are those of a YAML file; those given here win over the file's.
import sys

import llmkit

loaded = llmkit.load(
    "configs/demo.yaml",
    ["run.name=notebook", "train.max_steps=200", "model.num_hidden_layers=2", *sys.argv[1:]],
)
print(f"{loaded.config.model.hidden_size} wide, {loaded.config.train.max_steps} steps")

# %% Train; a second call goes on where the first one stopped, or finds that nothing is left to do.
run = llmkit.train(loaded)

# %% The record of the run is a list of rows.
rows = [row for row in run.metrics if row.get("loss") is not None]
steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats a token in {steps[-1]} steps")


# %% Plot it.
def plot_text(steps: list[int], losses: list[float], width: int = 50) -> None:
    """A bar for each of at most 20 rows."""
    for step, loss in list(zip(steps, losses))[:: -(-len(steps) // 20)]:
        print(f"{step:>6}  {loss:6.3f}  {'#' * round(width * loss / max(losses))}")


try:
    from matplotlib import pyplot
except ImportError:
    plot_text(steps, losses)
else:
    pyplot.plot(steps, losses)
    pyplot.xlabel("step")
    pyplot.ylabel("loss (nats per token)")
    pyplot.savefig(run.path / "loss.png")

# %% Sample from the newest checkpoint, and evaluate it on text that it was not trained on.
print(run.generate("import ", max_new_tokens=60, temperature=0.8))
print(f"held out: {run.evaluate().loss:.3f} nats a token")

# %% The model itself is a torch module, in evaluation mode.
model = run.model(device="cpu")
print(f"{sum(weight.numel() for weight in model.parameters()):,} weights")
