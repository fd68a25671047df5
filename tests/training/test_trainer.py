"""The weighted loss is right however a batch is split; arguments, resuming and the output folder are checked first."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ports import free_port
from safetensors.torch import load_file
from transformers import EvalPrediction, TrainingArguments

import train
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import ANY_TUMOR
from brain_tumor_mri.training import arguments
from brain_tumor_mri.training import trainer as training
from brain_tumor_mri.training.arguments import parse_arguments, parse_size_schedule
from brain_tumor_mri.training.backbone import build_model
from brain_tumor_mri.training.checkpoints import claim_output_dir
from brain_tumor_mri.training.losses import Teacher, weighted_cross_entropy_sum, with_any_tumor_weight
from brain_tumor_mri.training.run import epoch_rows, prepare_output_dir
from brain_tumor_mri.training.trainer import WeightedLossTrainer

sys.path.insert(0, str(Path(__file__).parent))
import weighted_loss_probe as probe

ROOT = Path(__file__).parents[2]


def hand_computed_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """The weighted mean of torch's documentation, in numpy: sum_i -log p . q_i w / sum_i w[y_i]."""
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    return float(-(log_p * target * weights).sum() / weights[labels].sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_a_hand_computed_one_and_torchs(smoothing):
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(7, 4)), rng.integers(0, 4, 7), np.array([4.32, 4.27, 3.58, 3.92])
    tensors = torch.tensor(logits), torch.tensor(labels), with_any_tumor_weight(weights.tolist())
    ours = weighted_cross_entropy_sum(*tensors, smoothing) / tensors[2][tensors[1]].sum()
    assert ours.item() == pytest.approx(hand_computed_loss(logits, labels, weights, smoothing), rel=1e-6)
    torchs = torch.nn.CrossEntropyLoss(tensors[2][:4], label_smoothing=smoothing)(tensors[0].float(), tensors[1])
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-6)


def test_any_tumor_costs_minus_log_of_the_tumour_classes_together():
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.0, 0.0, 3.0, 0.0]])
    labels = torch.tensor([ANY_TUMOR, ANY_TUMOR])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    by_hand = -np.log(p[0, 0] + p[0, 1] + p[0, 3]) - np.log(p[1, 0] + p[1, 1] + p[1, 3])
    assert weighted_cross_entropy_sum(logits, labels, with_any_tumor_weight(None)).item() == pytest.approx(by_hand)
    weights = with_any_tumor_weight([4.0, 3.0, 9.0, 2.0])
    assert weights[ANY_TUMOR] == 3.0  # the mean of the tumour classes'
    assert weighted_cross_entropy_sum(logits, labels, weights).item() == pytest.approx(3 * by_hand)
    smoothed = weighted_cross_entropy_sum(logits, labels, with_any_tumor_weight(None), 0.1).item()
    assert smoothed == pytest.approx(0.9 * by_hand - 0.1 * np.log(p).mean(1).sum(), rel=1e-6)


def test_any_tumor_teaches_tumour_but_not_which():
    logits = torch.zeros(1, 4, requires_grad=True)
    weighted_cross_entropy_sum(logits, torch.tensor([ANY_TUMOR]), with_any_tumor_weight(None)).backward()
    gradient = logits.grad[0]
    assert gradient[2] > 0 and torch.allclose(gradient[[0, 1, 3]], gradient[0].expand(3)) and gradient[0] < 0


def test_a_teacher_of_the_same_weights_adds_nothing_and_its_normalisation_is_its_own(tmp_path):
    trainer = small_trainer(tmp_path)
    model, batch = trainer.model.eval(), probe.RandomSlices(4)
    pixels = torch.stack([batch[i]["pixel_values"] for i in range(4)])
    other = build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64)
    other.load_state_dict(model.state_dict())
    other.config.pretrained_cfg |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    same = Teacher(other, model.config)
    theirs = pixels * same.scale + same.shift
    mean, std = (torch.tensor(model.config.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    assert torch.allclose(theirs * 0.25 + 0.5, pixels * std + mean, atol=1e-5)
    logits = other(pixel_values=theirs).logits
    assert same.divergence_sum(logits, pixels).item() == pytest.approx(0, abs=1e-5)
    assert same.divergence_sum(logits.flip(1), pixels).item() > 0.001
    assert not any(p.requires_grad for p in same.parameters())


def test_with_a_teacher_the_loss_is_the_weighted_sum_and_evaluation_ignores_it(tmp_path):
    trainer = small_trainer(tmp_path)
    batch = torch.utils.data.default_collate([probe.RandomSlices(6)[i] for i in range(6)])
    plain = trainer.compute_loss(trainer.model.train(), batch).item()
    torch.manual_seed(9)
    teacher = build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64)
    trainer.teacher, trainer.teacher_weight = Teacher(teacher, trainer.model.config), 0.25
    divergence = trainer.teacher.divergence_sum(trainer.model(batch["pixel_values"]).logits, batch["pixel_values"])
    total = trainer.label_weights[batch["labels"]].sum()
    expected = 0.75 * plain + 0.25 * (divergence / total).item()
    assert trainer.compute_loss(trainer.model.train(), batch).item() == pytest.approx(expected, rel=1e-4)
    evaluated = trainer.compute_loss(trainer.model.eval(), batch).item()
    trainer.teacher = None
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == evaluated


def test_mixup_mixes_slices_and_losses_alike_in_training_alone(tmp_path):
    trainer = small_trainer(tmp_path)
    batch = torch.utils.data.default_collate([probe.RandomSlices(6)[i] for i in range(6)])
    seen = []
    trainer.model.timm_model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.mixup = 0.8
    torch.manual_seed(3)
    loss, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
    torch.manual_seed(3)
    order = torch.randperm(6)
    share = float(torch.distributions.Beta(0.8, 0.8).sample())
    share = max(share, 1 - share)
    mixed = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"][order]
    assert torch.allclose(seen[0], mixed, atol=1e-6)
    logits, labels = outputs.logits.detach(), batch["labels"]
    sums = [weighted_cross_entropy_sum(logits, y, trainer.label_weights) for y in (labels, labels[order])]
    expected = (share * sums[0] + (1 - share) * sums[1]) / trainer.label_weights[labels].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trainer.compute_loss(trainer.model.eval(), batch)
    assert torch.equal(seen[1], batch["pixel_values"])


def test_an_epochs_figures_are_of_known_classes_and_tumours_found_apart():
    logits = np.array([[5.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 5.0]], dtype=np.float32)
    figures = training.validation_figures(EvalPrediction(logits, np.array([0, 0, ANY_TUMOR, ANY_TUMOR])))
    assert (figures["accuracy"], figures["tumours_found"]) == (0.5, 0.5)
    assert "tumours_found" not in training.validation_figures(EvalPrediction(logits, np.array([0, 1, 2, 3])))


def test_no_epoch_is_chosen_on_slices_that_train():
    flags = ["configs/smoke.yaml", "--train_on_validation", "true"]
    with pytest.raises(UserError, match="--load_best_model_at_end false"):
        parse_arguments(flags)
    assert parse_arguments([*flags, "--load_best_model_at_end", "false"]).protocol.train_on_validation


def test_depthwise_convolutions_run_in_float32_under_autocast_and_give_bfloat16():
    layer = torch.nn.Conv2d(8, 8, 3, groups=8)
    dense = torch.nn.Conv2d(8, 8, 3)
    model = torch.nn.Sequential(layer, dense)
    names = set(model.state_dict())
    x = torch.rand(2, 8, 9, 9)
    exact = layer(x)
    training.keep_depthwise_in_float32(model)
    assert torch.equal(layer(x), exact) and set(model.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), exact.to(torch.bfloat16))
        assert dense(x).dtype == torch.bfloat16


def small_trainer(tmp_path: Path, weight_averaging: float = 0.0, **options) -> WeightedLossTrainer:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **options)
    torch.manual_seed(0)
    model = build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64)
    slices = probe.RandomSlices(4)
    return WeightedLossTrainer(
        model=model,
        args=args,
        eval_dataset=slices,
        class_weights=probe.CLASS_WEIGHTS,
        weight_averaging=weight_averaging,
    )


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"label_smoothing_factor": 0.1}])
def test_the_trainers_loss_is_the_hand_computed_one_of_its_own_logits(tmp_path, options):
    """In mixed precision too: the network computes in bfloat16, the loss in float32."""
    trainer = small_trainer(tmp_path, **options)
    batch = torch.utils.data.default_collate([probe.RandomSlices(8)[i] for i in range(8)])
    trainer.model.train()
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.dtype == torch.float32
    expected = hand_computed_loss(
        outputs.logits.detach().float().numpy().astype(float),
        batch["labels"].numpy(),
        np.array(probe.CLASS_WEIGHTS),
        options.get("label_smoothing_factor", 0.0),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_class_weights_is_plain_cross_entropy(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    model = build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64)
    trainer = WeightedLossTrainer(model=model, args=args)
    batch = torch.utils.data.default_collate([probe.RandomSlices(8)[i] for i in range(8)])
    loss, outputs = trainer.compute_loss(model.eval(), batch, return_outputs=True)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]).item())


def run_probe(
    folder: Path, batch_size: int, steps: int, processes: int = 1, images: int = 24
) -> tuple[dict, list[float]]:
    folder.mkdir()
    script = str(ROOT / "tests/training/weighted_loss_probe.py")
    command = [sys.executable, script, str(folder), str(batch_size), str(steps), str(images)]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
        launch += ["--main_process_port", str(free_port())]
        command[1:1] = [*launch, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    history = json.loads((folder / "state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return load_file(folder / "weights.safetensors"), [*losses, history[-1]["eval_loss"]]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> tuple[dict, list[float]]:
    return run_probe(tmp_path_factory.mktemp("probe") / "one", batch_size=8, steps=1)


def same_training(a: tuple[dict, list[float]], b: tuple[dict, list[float]]) -> None:
    assert a[1] == pytest.approx(b[1], rel=1e-4)
    for name, tensor in a[0].items():
        assert torch.allclose(tensor, b[0][name], atol=2e-5), name


def test_gradient_accumulation_trains_as_one_large_batch_does(tmp_path):
    """With 22 images each epoch ends in a step of 6, made of three micro-batches where the others have four."""
    whole = run_probe(tmp_path / "whole", batch_size=8, steps=1, images=22)
    same_training(whole, run_probe(tmp_path / "accumulated", batch_size=2, steps=4, images=22))


def test_two_processes_train_as_one_does(one_process, tmp_path):
    same_training(one_process, run_probe(tmp_path / "two", batch_size=4, steps=1, processes=2))


def test_two_processes_and_accumulation_together_train_as_one_does(one_process, tmp_path):
    same_training(one_process, run_probe(tmp_path / "both", batch_size=2, steps=2, processes=2))


def test_training_batches_are_shrunk_to_the_epochs_size_and_evaluation_is_not(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.size_schedule = [(32, 2), (48, 1), (64, 1)]
    seen = []
    trainer.model.timm_model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    batch = torch.utils.data.default_collate([probe.RandomSlices(8)[i] for i in range(2)])
    for epoch in (0.0, 0.5, 1.9, 2.0, 3.5, 4.0):
        trainer.state.epoch = epoch
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch)
    trainer.state.epoch = 0.0
    trainer.compute_loss(trainer.model.eval(), batch)
    assert seen == [32, 32, 32, 48, 64, 64, 64]


def test_a_schedule_for_more_epochs_than_are_trained_ends_above_zero(tmp_path):
    options = {"num_train_epochs": 4, "learning_rate": 1.0, "lr_scheduler_type": "linear", "warmup_steps": 0.2}
    trainer = small_trainer(tmp_path, **options)
    trainer.schedule_epochs = 5
    trainer.create_optimizer_and_scheduler(num_training_steps=40)
    rates = []
    for _ in range(40):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[10] == pytest.approx(1.0)  # a fifth of the 50 steps that the schedule spans warms up
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.25)


def rates_on(trainer: WeightedLossTrainer, metric: str, curve: list[float]) -> list[float]:
    """The learning rate after each evaluation of a made-up curve, by the Trainer's own code."""
    trainer.create_optimizer_and_scheduler(num_training_steps=100)
    rates = []
    for value in curve:
        trainer.evaluate = lambda value=value, **_: {f"eval_{metric}": value}
        trainer._evaluate(trial=None, ignore_keys_for_eval=None)
        rates.append(trainer._get_learning_rate())
    return rates


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("macro_f1", 1), ("loss", -1), ("log_loss", -1)])
def test_a_plateau_schedule_lowers_the_rate_when_the_metric_stalls_and_not_while_it_gets_better(tmp_path, metric, sign):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "learning_rate": 1.0, "metric_for_best_model": metric}
    options["eval_strategy"] = "epoch"
    better = [0.5 + sign * 0.01 * epoch for epoch in range(25)]
    assert rates_on(small_trainer(tmp_path, **options), metric, better) == [1.0] * 25
    stalled = rates_on(small_trainer(tmp_path, **options), metric, [0.5] * 13)
    assert stalled[:11] == [1.0] * 11 and stalled[-1] == pytest.approx(0.1)


def test_a_plateau_schedule_takes_further_settings_and_the_seed_recipe_keeps_its_rate_while_accuracy_rises(tmp_path):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 2, "factor": 0.5}}
    options |= {"metric_for_best_model": "accuracy", "eval_strategy": "epoch"}
    trainer = small_trainer(tmp_path, learning_rate=1.0, **options)
    assert rates_on(trainer, "accuracy", [0.5] * 4)[-1] == 0.5
    seed = parse_arguments(["configs/seed.yaml", "--output_dir", str(tmp_path)]).training
    model = build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64)
    trainer = WeightedLossTrainer(model=model, args=seed, eval_dataset=probe.RandomSlices(4))
    assert rates_on(trainer, "accuracy", [0.8 + 0.005 * epoch for epoch in range(25)]) == [1e-4] * 25


@pytest.mark.parametrize("batch_size", [1, 5, 13])
def test_the_validation_loss_is_one_weighted_mean_whatever_the_batch_size(tmp_path, batch_size):
    trainer = small_trainer(tmp_path, per_device_eval_batch_size=batch_size)
    slices = probe.RandomSlices(13)
    slices.labels[3] = ANY_TUMOR
    batch = torch.utils.data.default_collate([slices[i] for i in range(13)])
    logits = trainer.model.eval()(batch["pixel_values"]).logits.detach()
    weights = trainer.label_weights
    expected = weighted_cross_entropy_sum(logits, batch["labels"], weights) / weights[batch["labels"]].sum()
    assert trainer.evaluate(slices)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.predict(slices).metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_size_schedules_are_checked():
    assert parse_size_schedule(None, 224, 25) == [(224, 25)]
    assert parse_size_schedule("128:11,176:4,224:3", 224, 18) == [(128, 11), (176, 4), (224, 3)]
    for wrong in ("128", "128:5", "128:x", "8:18", "128:-2,224:20"):
        with pytest.raises(UserError, match="--train_sizes"):
            parse_size_schedule(wrong, 224, 18)
    with pytest.raises(UserError, match="in quotes"):
        parse_size_schedule("17283", 288, 3)  # what YAML makes of 288:3 without them


def test_flags_override_the_file_and_every_training_argument_works():
    args = parse_arguments(["configs/seed.yaml", "--learning_rate", "5e-5", "--class_weights", "1,2,3,4"])
    assert args.training.learning_rate == 5e-5
    assert args.data.class_weights == "1,2,3,4"
    assert args.training.num_train_epochs == 25
    flags = ["--push_to_hub", "--hub_model_id", "me/model", "--adam_beta2", "0.9", "--max_steps", "7"]
    training_args = parse_arguments(flags).training
    assert training_args.push_to_hub
    assert training_args.hub_model_id == "me/model"
    assert training_args.max_steps == 7


def test_the_seed_preset_is_the_sources_recipe():
    args = parse_arguments(["configs/seed.yaml"])
    t = args.training
    assert args.model.model_name_or_path == "timm/resnet50.a1_in1k"
    assert (t.per_device_train_batch_size, t.learning_rate, t.weight_decay, t.num_train_epochs) == (32, 1e-4, 1e-4, 25)
    assert t.lr_scheduler_type == "reduce_lr_on_plateau"
    assert args.data.class_weights == "inverse"
    assert (args.augmentation.rotation, args.augmentation.horizontal_flip) == (15, 0.5)
    optimizer, options = arguments.optimizer_class(args)
    assert optimizer is torch.optim.Adam
    assert options["lr"] == 1e-4


RECIPES = sorted(path.name for path in (ROOT / "configs").glob("*.yaml") if path.name != "federated.yaml")


@pytest.mark.parametrize("config", RECIPES)
def test_every_config_of_the_repository_is_read(config):
    args = parse_arguments([str(ROOT / "configs" / config)])
    parse_size_schedule(args.model.train_sizes, args.model.image_size, args.training.num_train_epochs)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["--learning_rte", "1"], "--learning_rte"),
        (["--learning_rate", "fast"], "fast"),
        (["--optimizer", "adam", "--validation_fraction", "2"], "--validation_fraction"),
    ],
)
def test_wrong_arguments_are_one_line_that_names_them(argv, named):
    with pytest.raises(UserError) as error:
        parse_arguments(argv)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--metric_for_best_model", "nonsense"),
        ("--prediction_loss_only", "true"),
        ("--report_to", "wandb"),
        ("--neftune_noise_alpha", "5"),
        ("--debug", "tpu_metrics_debug"),
        ("--torch_compile_mode", "nonsense"),
        ("--label_names", "x"),
        ("--batch_eval_metrics", "true"),
        ("--optim", "adamw_bnb_8bit"),
        ("--per_device_train_batch_size", "0"),
        ("--seed", "-1"),
        ("--fsdp", "full_shard"),
        ("--num_train_epochs", "-1"),
        ("--learning_rate", "nan"),
        ("--adam_epsilon", "0"),
        ("--dataloader_persistent_workers", "true"),
    ],
)
def test_a_setting_that_would_fail_later_is_one_line_at_once(flag, value):
    with pytest.raises(UserError) as error:
        parse_arguments([flag, value])
    assert flag.removeprefix("--")[:8] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--push_to_hub", "true", "--hub_model_id", "me/model"], r"--push_to_hub: cannot .* me/model \(.*\); log in"),
        (["--resume_from_checkpoint", "nowhere"], r"--resume_from_checkpoint nowhere: model\.safetensors is missing"),
        (["--per_device_train_batch_size", "1", "--image_size", "32"], "--per_device_train_batch_size 2 or more"),
        (["--model_name_or_path", "me/backbone", "--from_scratch", "false"], "me/backbone"),
        (["--teacher", "nowhere"], "nowhere"),
    ],
)
def test_what_can_be_told_without_the_data_is_told_before_a_file_is_read(tmp_path, monkeypatch, flags, told):
    monkeypatch.setattr(train, "load_parts", lambda *_, **__: pytest.fail("the data was read"))
    with pytest.raises(UserError, match=told) as error:
        train.main(["configs/smoke.yaml", "--output_dir", str(tmp_path / "run"), *flags])
    assert "\n" not in str(error.value)


def test_one_slice_that_is_left_over_and_cannot_be_normalised_is_one_line(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=9, per_device_train_batch_size=4, disable_tqdm=True)
    trainer.model = trainer.model_wrapped = build_model("timm/test_resnet", from_scratch=True, image_size=32)
    trainer.train_dataset = [
        {"pixel_values": one["pixel_values"][:, :32, :32], "labels": one["labels"]}
        for one in (probe.RandomSlices(5)[i] for i in range(5))
    ]
    with pytest.raises(UserError, match="--dataloader_drop_last true"):
        trainer.train()


def test_a_package_that_is_missing_for_a_report_is_told_and_nothing_else_is(capfd):
    with pytest.raises(UserError, match=r"--report_to mlflow: not installed here: mlflow"):
        parse_arguments(["--report_to", "mlflow"])
    assert capfd.readouterr().err == ""


def test_a_revision_of_a_backbone_folder_is_refused_not_ignored(tmp_path):
    with pytest.raises(UserError, match=r"--model_revision v2: .* without revisions"):
        parse_arguments(["--model_name_or_path", str(tmp_path), "--model_revision", "v2"])


def test_a_fault_that_names_no_flag_is_told_with_the_flags_that_were_given():
    with pytest.raises(UserError, match="--lr_scheduler_kwargs: Expecting property name"):
        parse_arguments(["--lr_scheduler_kwargs", "{bad"])


def test_a_file_with_names_beyond_ascii_is_read_where_the_locale_has_ascii_only(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("data_dir: données\n# größer\n", encoding="utf-8")
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, encoding="ascii", **kwargs: read(self, encoding, **kwargs))
    assert parse_arguments([str(tmp_path / "c.yaml")]).data.data_dir == "données"


def test_inverse_weights_of_a_class_without_slices_are_refused_before_a_file_is_read():
    with pytest.raises(UserError, match="--class_weights inverse"):
        parse_arguments(["--protocol", "figshare-5fold", "--class_weights", "inverse"])


def test_a_training_that_diverges_stops_in_one_line_at_its_step(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=9, learning_rate=1e30, max_grad_norm=0, optim="sgd", disable_tqdm=True)
    trainer.train_dataset = probe.RandomSlices(16)
    with pytest.raises(UserError, match=r"step \d, epoch .* diverged"):
        trainer.train()


def test_folders_in_a_file_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data_dir: ~/x\n")
    assert parse_arguments([str(tmp_path / "c.yaml")]).data.data_dir == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 3000, "cannot read this configuration"),
        ("learning_rate: " + "9" * 5000, "cannot read this configuration"),
        ("data_dir: 2001-99-99", "cannot read this configuration"),
        ("data_dir: !!python/object/apply:os.getcwd []", "cannot read this configuration"),
        ("data_dir: {a: 1}", "data_dir: give one value"),
        ("learning_rate: [1]", "learning_rate: give one value"),
        ("class_weights: [1, 2, 3, 4]", "class_weights: give one value, written as for --class_weights"),
        ("optim: nonsense", "optim: nonsense is none of adamw_torch"),
    ],
)
def test_a_file_that_holds_anything_else_is_one_line_that_names_it(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as error:
        parse_arguments([str(tmp_path / "c.yaml")])
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value)


def test_days_numbers_lists_and_objects_of_a_file_are_taken_as_flags_would_be(tmp_path):
    lines = ["data_dir: 2024-01-31", "output_dir: 5", "lr_scheduler_kwargs: {num_cycles: 0.25}", "report_to: [none]"]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "lr_scheduler_type: cosine", "learning_rate: 1e-4", "seed: 7"]))
    args = parse_arguments([str(tmp_path / "c.yaml")])
    assert (args.data.data_dir, args.training.output_dir) == ("2024-01-31", "5")
    assert args.training.lr_scheduler_kwargs == {"num_cycles": 0.25} and args.training.seed == 7


def test_an_unknown_setting_in_a_file_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rat: 1e-4\n")
    with pytest.raises(UserError, match="learning_rat"):
        parse_arguments([str(tmp_path / "c.yaml")])


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory) -> Path:
    """Four steps with the average of the weights, a checkpoint every two."""
    folder = tmp_path_factory.mktemp("averaged")
    averaged_trainer(folder).train()
    return folder


def averaged_trainer(folder: Path) -> WeightedLossTrainer:
    options = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    trainer = small_trainer(folder, weight_averaging=0.9, disable_tqdm=True, logging_strategy="no", **options)
    trainer.train_dataset = probe.RandomSlices(16)
    return trainer


def test_the_average_of_the_weights_is_the_recurrence_that_its_docstring_gives():
    model = torch.nn.BatchNorm1d(1)
    average = training.WeightAverage(model, 0.5)
    average.on_train_begin(None, None, None)
    expected = 1.0
    for step, value in enumerate([2.0, 3.0, 7.0], 1):
        with torch.no_grad():
            model.weight.fill_(value)
        model.num_batches_tracked.fill_(step)
        average.on_step_end(None, SimpleNamespace(global_step=step), None)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
    assert average.state["weight"].item() == pytest.approx(expected)
    assert average.state["num_batches_tracked"] == 3
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 7


def test_a_resumed_run_goes_on_with_the_average_of_the_checkpoint_that_it_is_given(averaged_run, tmp_path):
    whole = load_file(averaged_run / "checkpoint-4" / "average.safetensors")
    own = load_file(averaged_run / "checkpoint-4" / "model.safetensors")
    assert any(not torch.equal(whole[name], own[name]) for name in own)
    assert "average.safetensors" in json.loads((averaged_run / "checkpoint-4" / "checksums.json").read_text())
    moved = shutil.copytree(averaged_run / "checkpoint-2", tmp_path / "elsewhere")
    trainer = averaged_trainer(tmp_path / "resumed")
    trainer.train(resume_from_checkpoint=str(moved))
    resumed = load_file(tmp_path / "resumed" / "checkpoint-4" / "average.safetensors")
    for name, tensor in whole.items():
        assert torch.allclose(resumed[name], tensor, atol=1e-6), name


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("model.safetensors", "optimizer.pt") for damage in (shorten, empty, Path.unlink)),
        ("average.safetensors", Path.unlink),
        ("rng_state.pth", shorten),
        ("trainer_state.json", empty),
    ],
)
def test_the_older_checkpoint_is_tried_where_the_newest_is_cut(averaged_run, tmp_path, capsys, name, damage):
    folder = shutil.copytree(averaged_run, tmp_path / "run")
    args = parse_arguments(["--output_dir", str(folder), "--weight_averaging", "0.9"])
    assert prepare_output_dir(args, parameters=1000) == str(folder / "checkpoint-4")
    damage(folder / "checkpoint-4" / name)
    assert prepare_output_dir(args, parameters=1000) == str(folder / "checkpoint-2")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"checkpoint-4: {name}" in line
    args.training.resume_from_checkpoint = str(folder / "checkpoint-4")
    with pytest.raises(UserError, match=f"checkpoint-4: {name}"):
        prepare_output_dir(args, parameters=1000)


def test_a_checkpoint_is_chosen_by_name_by_true_or_not_at_all(averaged_run, tmp_path):
    folder = shutil.copytree(averaged_run, tmp_path / "run")
    (folder / "checkpoint-4" / "trainer_state.json").write_text("")

    def chosen(setting: str) -> str | None:
        flags = ["--output_dir", str(folder), "--resume_from_checkpoint", setting]
        return prepare_output_dir(parse_arguments(flags), parameters=1000)

    assert chosen("true") == str(folder / "checkpoint-2")
    assert chosen("false") is None
    assert chosen(str(averaged_run / "checkpoint-4")) == str(averaged_run / "checkpoint-4")
    with pytest.raises(UserError, match=r"nowhere: model\.safetensors is missing"):
        chosen(str(tmp_path / "nowhere"))


def test_an_output_folder_that_cannot_be_used_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        claim_output_dir(tmp_path / "file" / "run")
    folder = tmp_path / "run"
    args = parse_arguments(["--output_dir", str(folder)])
    claim_output_dir(folder).release()
    with pytest.raises(UserError, match="are needed for checkpoints"):
        prepare_output_dir(args, parameters=10**15)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr("brain_tumor_mri.training.checkpoints.tempfile.TemporaryFile", _full_disk)
        claim_output_dir(folder)
    assert prepare_output_dir(args, parameters=1000) is None


def _full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_folder_with_another_runs_settings_is_refused_and_says_what_differs(tmp_path):
    base = ["--output_dir", str(tmp_path)]
    prepare_output_dir(parse_arguments(base), parameters=1000)
    assert prepare_output_dir(parse_arguments([*base, "--dataloader_num_workers", "1"]), parameters=1000) is None
    with pytest.raises(UserError, match=r"learning_rate 5e-05 -> 0\.1"):
        prepare_output_dir(parse_arguments([*base, "--learning_rate", "0.1"]), parameters=1000)


def test_other_data_and_another_number_of_processes_are_another_run(tmp_path):
    args = parse_arguments(["--output_dir", str(tmp_path)])
    prepare_output_dir(args, 1000, {"split_fingerprint": "a"})
    assert prepare_output_dir(args, 1000, {"split_fingerprint": "a"}) is None
    with pytest.raises(UserError, match="split_fingerprint a -> b"):
        prepare_output_dir(args, 1000, {"split_fingerprint": "b"})
    record = tmp_path / "run.json"
    record.write_text(record.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(UserError, match="processes 2 -> 1"):
        prepare_output_dir(args, 1000, {"split_fingerprint": "a"})


def test_the_recorded_settings_hold_no_folder_of_the_machine(tmp_path):
    args = parse_arguments(["--output_dir", str(tmp_path), "--data_dir", str(tmp_path), "--hub_token", "hf_secret"])
    text = json.dumps(arguments.run_settings(args))
    assert str(tmp_path) not in text
    assert "hf_secret" not in text


def test_the_epoch_table_pairs_training_and_validation_figures():
    history = [
        {"loss": 1.0, "learning_rate": 0.1, "epoch": 1.0},
        {"eval_loss": 0.9, "eval_accuracy": 0.6, "epoch_train_loss": 1.1, "epoch_train_accuracy": 0.5, "epoch": 1.0},
        {"train_runtime": 3.0, "train_loss": 1.0, "epoch": 1.0},
    ]
    expected = {"epoch": 1.0, "train_loss": 1.1, "train_accuracy": 0.5, "validation_loss": 0.9}
    assert epoch_rows(history) == [expected | {"validation_accuracy": 0.6, "learning_rate": 0.1}]
