"""Each module of llmkit has its tests in the place of the same name, or where the table below says."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "llmkit"
ELSEWHERE = {
    # Module -> the file of the tests that know it, by way of the module that uses it.
    "config/ema_section.py": "optim/test_schedule.py",
    "config/faults_section.py": "config/test_keys.py",
    "calibration/primitives.py": "calibration/test_steps.py",
    "copies/drivers.py": "copies/test_store.py",
    "copies/listing.py": "loop/test_copying.py",
    "copies/offer.py": "copies/test_copier.py",
    "copies/place.py": "loop/test_bring_back.py",
    "cluster/check.py": "cluster/test_submit.py",
    "cluster/options.py": "cluster/test_submit.py",
    "cluster/request.py": "cluster/test_submit.py",
    "shipped/options.py": "shipped/test_command.py",
    "slurm.py": "cluster/test_slurm.py",
    "config/lora_section.py": "config/test_adapters.py",
    "config/monitor_section.py": "config/test_keys.py",
    "config/operators.py": "kernels/test_operators.py",
    "config/preference_section.py": "config/test_check_preference.py",
    "kernels/attention_ring.py": "kernels/test_attention_context.py",
    "data/batches.py": "data/test_loader.py",
    "data/building/batch.py": "data/building/test_parts.py",
    "data/building/stats.py": "data/building/test_build_source.py",
    "data/building/write_shards.py": "data/building/test_build_source.py",
    "data/building/given.py": "data/test_prepared.py",
    "data/building/opened.py": "data/test_prepared.py",
    "data/building/progress.py": "data/building/test_build_source.py",
    "data/inspect_figures.py": "data/test_inspect.py",
    "data/located.py": "test_evaluation_data.py",
    "data/rank_batch.py": "data/test_loader.py",
    "data/mixing.py": "data/test_sampler.py",
    "data/shards/dataset.py": "data/shards/test_reader.py",
    "data/shards/documents.py": "data/shards/test_writer.py",
    "data/shards/format.py": "data/shards/test_reader.py",
    "data/shards/megatron_index.py": "data/shards/test_megatron.py",
    "data/shuffle.py": "data/test_sampler.py",
    "data/sources/record_masks.py": "data/sources/test_extract.py",
    "data/sources/records.py": "data/sources/test_extract.py",
    "data/tokens/control_tokens.py": "data/tokens/test_encode.py",
    "data/tokens/hard_texts.py": "data/tokens/test_fast_bpe.py",
    "data/tokens/stream_decoder.py": "generation/test_text.py",
    "data/tokens/template_environment.py": "data/tokens/test_chat.py",
    "data/tokens/text_encoder.py": "data/tokens/test_fast_bpe.py",
    "data/tokens/tokenizer_json.py": "data/tokens/test_tokenizer.py",
    "generation/options.py": "generation/test_command.py",
    "generation/showing.py": "generation/test_command.py",
    "engine/build.py": "engine/test_custom_models.py",
    "engine/deepspeed_config.py": "parallel/test_deepspeed_file.py",
    "config/task_section.py": "loop/test_tasks.py",
    "engine/layer_statistics.py": "loop/test_step_details.py",
    "doctor/meeting.py": "doctor/test_cluster.py",
    "doctor/options.py": "doctor/test_command.py",
    "doctor/participant.py": "doctor/test_cluster.py",
    "doctor/ranks.py": "doctor/test_collectives.py",
    "estimate/communication.py": "estimate/test_step_parts.py",
    "estimate/constants.py": "estimate/test_step_parts.py",
    "estimate/part_sources.py": "estimate/test_step_time.py",
    "evaluation/harness_model.py": "evaluation/test_harness.py",
    "loop/evaluations.py": "loop/test_evaluate.py",
    "loop/hook_list.py": "loop/test_hook.py",
    "loop/launch.py": "loop/test_prepare.py",
    "hf/tensor_files.py": "hf/test_folder.py",
    "kernels/adamw.py": "optim/test_build.py",
    "kernels/linear.py": "model/test_layers.py",
    "plan/arithmetic.py": "plan/test_activations.py",
    "plan/attention_rules.py": "plan/test_operators.py",
    "plan/facts.py": "test_device.py",
    "recipes/recipe.py": "recipes/test_rules.py",
    "plan/form_rules.py": "plan/test_operators.py",
    "planner/compare.py": "planner/test_command.py",
    "planner/document.py": "planner/test_command.py",
    "planner/explain.py": "planner/test_command.py",
    "planner/options.py": "planner/test_command.py",
    "planner/page.py": "planner/test_command.py",
    "planner/study.py": "planner/test_command.py",
    "serve/answers.py": "serve/test_app.py",
    "watchdog/process.py": "watchdog/test_watch.py",
    "watchdog/watcher.py": "watchdog/test_watch.py",
    "watch/options.py": "watch/test_runs.py",
    "serve/asks.py": "serve/test_app.py",
    "serve/errors.py": "serve/test_app.py",
    "serve/replies.py": "serve/test_app.py",
    "monitor/jsonlines.py": "monitor/test_metrics.py",
    "preference/compute.py": "preference/test_command.py",
    "weights/adapted.py": "convert/test_adapter.py",
    "weights/base.py": "weights/test_opening.py",
    "weights/checkpoint.py": "weights/test_opening.py",
    "monitor/options.py": "monitor/test_wandb_sync.py",
    "monitor/wandb_catch_up.py": "monitor/test_wandb_sync.py",
    "monitor/wandb_finish.py": "monitor/test_wandb_mirror.py",
    "monitor/wandb_sidecar.py": "monitor/test_wandb_mirror.py",
    "loop/mirror.py": "test_train.py",
}


def modules() -> set[str]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return {path.as_posix() for path in paths if not path.name.startswith("__")}


def mirrored(module: str) -> bool:
    path = Path(module)
    return (TESTS / path.parent / f"test_{path.name}").exists()


def test_every_module_has_a_file_of_tests():
    missing = {f"llmkit/{module}" for module in modules() - set(ELSEWHERE) if not mirrored(module)}
    assert not missing, "write tests/ROOM/test_MODULE.py"


def test_the_table_has_nothing_but_what_is_elsewhere():
    assert set(ELSEWHERE) <= modules(), "a module of the table has gone"
    assert [module for module in ELSEWHERE if mirrored(module)] == []
    assert [file for file in ELSEWHERE.values() if not (TESTS / file).exists()] == []
