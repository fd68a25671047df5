"""A short training of a small network without batch statistics; run by test_training.py, by itself or under accelerate.

usage: weighted_loss_probe.py OUTPUT_DIR BATCH_SIZE ACCUMULATION_STEPS IMAGES

Batch norm would make the result depend on how a batch is split; with layer norm only the loss could.
"""

import sys

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from brain_tumor_mri.training.backbone import build_model
from brain_tumor_mri.training.run import start_missing_processes
from brain_tumor_mri.training.trainer import WeightedLossTrainer

CLASS_WEIGHTS = [4.0, 1.0, 0.5, 2.0]


class RandomSlices(Dataset):
    """Fixed random images and labels."""

    def __init__(self, images: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(images, 3, 64, 64, generator=generator)
        self.labels = torch.randint(0, 4, (images,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def main(output_dir: str, batch_size: int, accumulation_steps: int, images: int) -> None:
    """Train three epochs by SGD; save the weights and the log."""
    start_missing_processes()
    set_seed(0)
    args = TrainingArguments(
        output_dir=output_dir,
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation_steps,
        num_train_epochs=3,
        optim="sgd",
        learning_rate=0.005,
        max_grad_norm=0,
        lr_scheduler_type="constant",
        label_smoothing_factor=0.1,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    trainer = WeightedLossTrainer(
        model=build_model("timm/test_efficientnet_ln", from_scratch=True, image_size=64),
        args=args,
        train_dataset=RandomSlices(images),
        class_weights=CLASS_WEIGHTS,
    )
    trainer.train()
    trainer.evaluate(RandomSlices(13))
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{output_dir}/weights.safetensors")
        trainer.state.save_to_json(f"{output_dir}/state.json")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
