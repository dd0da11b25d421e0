"""Your own training loop around llmkit's model, data and optimizer, under Accelerate. Run it by
accelerate launch --config_file launch/zero2.yaml --num_processes 2 docs/examples/accelerate_loop.py CONFIG"""

import os
import sys
from datetime import timedelta

from accelerate import Accelerator

from llmkit.config.load import load
from llmkit.data.building.prepare import prepare
from llmkit.data.loader import TrainLoader
from llmkit.engine.deepspeed import import_deepspeed
from llmkit.model.gpt import GPT
from llmkit.optim.build import build_simple, groups_of
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group

config = load(sys.argv[1], sys.argv[2:]).config
import_deepspeed()  # on a CPU: without extensions that it would compile first
with process_group(rank_info_from_env(os.environ), timedelta(minutes=10)) as mesh:  # on a CPU: over gloo
    accelerator, size = Accelerator(), mesh.world_size
    rows = config.train.global_batch_size // size  # of each process, all in one micro-batch
    deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
    deepspeed |= {"train_micro_batch_size_per_gpu": rows, "gradient_clipping": config.train.gradient_clipping}
    data = prepare(config.data, accelerator.print, seed=config.run.seed)
    model = GPT.build(config, data.tokenizer.vocab_size).to(accelerator.device)
    parameters = dict(model.named_parameters())
    groups = groups_of(model.parameter_slices(), config.optimizer, hidden_matrices=())
    tensors = [(group, [parameters[name] for name in group.names]) for group in groups]
    model, optimizer = accelerator.prepare(model, build_simple("adamw", tensors, config.optimizer))
    batches = TrainLoader(data, config.data, config.run.seed, rows * size, rows, mesh.rank, size)
    for step, batch in zip(range(config.train.max_steps or 100), batches):
        targets = mesh.count_over_data(batch.own_targets)
        nats = model(batch.micro_batches[0].to(accelerator.device)).nats.sum()
        accelerator.backward(nats * size / targets)  # the mean over the targets of all processes
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step + 1} loss {float(accelerator.reduce(nats.detach())) / targets:.6f}")
    batches.close()
