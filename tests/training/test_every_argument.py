"""Every field of ``TrainingArguments`` trains with other values than its default, or is refused before data is read."""

import multiprocessing
import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

import train
from brain_tumor_mri.errors import UserError

# fmt: off
TRAINS: dict[str, list[str]] = {
    'max_steps': ['1', '0', '-5'],
    'learning_rate': ['0'],
    'lr_scheduler_type': ['linear', 'constant', 'constant_with_warmup', 'cosine_with_restarts', 'polynomial',
        'inverse_sqrt', 'reduce_lr_on_plateau', 'greedy'],
    'lr_scheduler_kwargs': ['{"num_cycles": 2}'],
    'warmup_steps': ['0.5', '3', '1000', '1.5'],
    'optim': ['adamw_torch', 'adafactor', 'sgd', 'adagrad', 'rmsprop'],
    'optim_args': ['momentum=0.9'],
    'weight_decay': ['0.1'],
    'adam_beta1': ['0.5'],
    'adam_beta2': ['0.5'],
    'adam_epsilon': ['1e-4'],
    'optim_target_modules': ['all', 'x'],
    'gradient_accumulation_steps': ['2'],
    'average_tokens_across_devices': ['false'],
    'max_grad_norm': ['0', '0.5'],
    'label_smoothing_factor': ['0.1'],
    'bf16': ['true'],
    'bf16_full_eval': ['true'],
    'fp16_full_eval': ['true'],
    'tf32': ['false'],
    'activation_checkpointing': ['true'],
    'activation_checkpointing_kwargs': ['{"use_reentrant": false}', '5'],
    'gradient_checkpointing': ['true'],
    'gradient_checkpointing_kwargs': ['{"use_reentrant": false}', '{"x": 1}'],
    'use_cache': ['true'],
    'torch_empty_cache_steps': ['1'],
    'auto_find_batch_size': ['true'],
    'logging_strategy': ['no', 'steps'],
    'logging_steps': ['1', '0.5', '1.5'],
    'logging_first_step': ['true'],
    'log_on_each_node': ['false'],
    'logging_nan_inf_filter': ['false'],
    'log_level': ['debug'],
    'log_level_replica': ['info'],
    'disable_tqdm': ['false'],
    'report_to': ['all'],
    'run_name': ['x'],
    'project': ['x'],
    'trackio_space_id': ['x'],
    'trackio_bucket_id': ['x'],
    'trackio_static_space_id': ['x'],
    'eval_steps': ['1', '0.5'],
    'eval_delay': ['1', '100'],
    'per_device_eval_batch_size': ['3'],
    'per_device_train_batch_size': ['1000'],
    'eval_on_start': ['true'],
    'eval_use_gather_object': ['true'],
    'eval_accumulation_steps': ['1'],
    'include_for_metrics': ['inputs', 'loss', 'nonsense'],
    'save_only_model': ['true'],
    'save_strategy': ['best'],
    'save_steps': ['1', '0.5'],
    'save_on_each_node': ['true'],
    'save_total_limit': ['1', '0'],
    'enable_jit_checkpoint': ['true'],
    'hub_token': ['x'],
    'hub_private_repo': ['true'],
    'hub_model_id': ['x'],
    'hub_strategy': ['checkpoint'],
    'hub_always_push': ['true'],
    'hub_revision': ['x'],
    'load_best_model_at_end': ['false'],
    'metric_for_best_model': ['loss', 'macro_f1', 'eval_accuracy'],
    'greater_is_better': ['false'],
    'ignore_data_skip': ['true'],
    'restore_callback_states_from_checkpoint': ['true'],
    'full_determinism': ['true'],
    'seed': ['7'],
    'data_seed': ['3'],
    'use_cpu': ['false'],
    'accelerator_config': ['{"split_batches": true}', '{"dispatch_batches": true}', '{"even_batches": false}',
        '{"gradient_accumulation_kwargs": {"num_steps": 3}}', '{"use_seedable_sampler": false}',
        '{"non_blocking": true}'],
    'dataloader_drop_last': ['true'],
    'dataloader_num_workers': ['1'],
    'dataloader_pin_memory': ['true'],
    'dataloader_in_order': ['false'],
    'remove_unused_columns': ['false'],
    'train_sampling_strategy': ['sequential'],
    'length_column_name': ['x'],
    'ddp_find_unused_parameters': ['true'],
    'ddp_bucket_cap_mb': ['5', '0'],
    'ddp_broadcast_buffers': ['true'],
    'ddp_static_graph': ['true'],
    'ddp_timeout': ['5', '-1', '0'],
    'fsdp_config': ['{"min_num_params": 5}', 'nofile'],
    'debug': ['underflow_overflow'],
    'skip_memory_metrics': ['false'],
    'do_train': ['true'],
    'do_eval': ['true'],
    'do_predict': ['true'],
    'resume_from_checkpoint': ['true', 'false'],
    'local_rank': ['0', '5'],
    'num_train_epochs': ['0.01', '0.5'],
    'torch_compile': ['true'],
}
"""Values with which a training of one epoch ends well, on a processor."""
REFUSED: dict[str, list[str]] = {
    'learning_rate': ['-1', 'inf'],
    'lr_scheduler_type': ['cosine_with_min_lr', 'warmup_stable_decay', 'cosine_warmup_with_min_lr', 'nonsense'],
    'lr_scheduler_kwargs': ['{bad', '{"nope": 1}', '5'],
    'warmup_steps': ['-1'],
    'optim': ['adamw_apex_fused', 'adamw_anyprecision', 'adamw_torch_4bit', 'ademamix', 'lion_8bit',
        'galore_adamw', 'lomo', 'grokadamw', 'schedule_free_adamw', 'apollo_adamw', 'stable_adamw', 'nonsense'],
    'optim_args': ['rubbish', 'a=b,c'],
    'weight_decay': ['-1'],
    'adam_beta1': ['1', '-1', '2'],
    'adam_beta2': ['1', '2'],
    'adam_epsilon': ['0', '-1'],
    'gradient_accumulation_steps': ['0'],
    'max_grad_norm': ['-1'],
    'label_smoothing_factor': ['2'],
    'fp16': ['true'],
    'tf32': ['true'],
    'torch_compile_backend': ['nonsense'],
    'torch_compile_mode': ['nonsense'],
    'use_liger_kernel': ['true'],
    'liger_kernel_config': ['{"rope": true}'],
    'neftune_noise_alpha': ['5'],
    'torch_empty_cache_steps': ['0', '-1'],
    'logging_strategy': ['x'],
    'logging_steps': ['0'],
    'include_num_input_tokens_seen': ['all', 'true'],
    'log_level': ['x'],
    'log_level_replica': ['x'],
    'report_to': ['wandb', 'tensorboard', 'nonsense', 'mlflow'],
    'eval_strategy': ['no', 'steps', 'x'],
    'eval_steps': ['0'],
    'eval_delay': ['-1'],
    'per_device_eval_batch_size': ['0', '-1'],
    'per_device_train_batch_size': ['0', '-1', '1'],
    'prediction_loss_only': ['true'],
    'eval_do_concat_batches': ['false'],
    'eval_accumulation_steps': ['0'],
    'batch_eval_metrics': ['true'],
    'save_strategy': ['no', 'steps', 'x'],
    'save_steps': ['0'],
    'save_total_limit': ['-1'],
    'hub_strategy': ['x'],
    'metric_for_best_model': ['nonsense'],
    'seed': ['-1', '4294967296', '99999999999999999999'],
    'data_seed': ['-1'],
    'accelerator_config': ['{"x": 1}', 'nofile'],
    'parallelism_config': ['x'],
    'dataloader_num_workers': ['-1'],
    'dataloader_persistent_workers': ['true'],
    'dataloader_prefetch_factor': ['2', '0'],
    'dataloader_multiprocessing_context': ['spawn', 'x'],
    'label_names': ['x', 'labels'],
    'train_sampling_strategy': ['group_by_length', 'x'],
    'ddp_backend': ['gloo', 'x'],
    'fsdp': ['full_shard', 'x'],
    'deepspeed': ['nofile', '{}'],
    'debug': ['tpu_metrics_debug', 'x'],
    'resume_from_checkpoint': ['nowhere'],
    'num_train_epochs': ['0', '-1', 'nan'],
    'output_dir': [''],
    'push_to_hub': ['true'],
}
"""Values that are told in one line before any file is decoded, where no package for them is installed."""
# fmt: on

FLAGS = ["configs/smoke.yaml", "--num_train_epochs", "1", "--image_size", "32", "--per_device_train_batch_size", "8"]
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["train"])


def each(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_no_field_is_left_untried():
    assert {field.name for field in fields(TrainingArguments)} - TRAINS.keys() - REFUSED.keys() == set()


@pytest.mark.parametrize(("name", "value"), each(REFUSED))
def test_what_cannot_work_is_one_line_before_a_file_is_read(name, value, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_parts", lambda *_, **__: pytest.fail("the data was read"))
    with pytest.raises(UserError) as error:
        train.main([*FLAGS, "--output_dir", str(tmp_path / "run"), f"--{name}", value])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), each(TRAINS))
def test_what_is_taken_trains(name, value, phantom_dir, tmp_path):
    flags = [*FLAGS, "--data_dir", str(phantom_dir), "--output_dir", str(tmp_path / "run"), f"--{name}", value]
    told = tmp_path / "told"
    process = START.Process(target=attempt, args=(flags, told))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    assert process.exitcode == 0, told.read_text()[-2000:]
    assert (tmp_path / "run" / "metrics.json").is_file()


def attempt(flags: list[str], told: Path) -> None:
    """Train in a process of its own, as some settings are of the whole process."""
    os.chdir(Path(train.__file__).parent)
    with told.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    train.main(flags)
    sys.stdout.flush()
