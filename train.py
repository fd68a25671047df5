"""Fine-tune a timm backbone on brain MRI slices.

    accelerate launch train.py configs/seed.yaml --data_dir data/brain-tumor-mri-dataset
    accelerate launch --multi_gpu --num_processes 4 train.py configs/seed.yaml --bf16
    accelerate launch --cpu --num_processes 2 train.py configs/smoke.yaml

Flags override the file; every field of TrainingArguments works. The same command again takes a killed run up where
its last checkpoint left it. See brain_tumor_mri/training/: arguments.py has the arguments, trainer.py the loss.
"""

import os
import sys
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from brain_tumor_mri.data.collections import draw_shares
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.hub.plan_model import publish_run
from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.training.arguments import optimizer_class, parse_arguments, parse_size_schedule
from brain_tumor_mri.training.backbone import build_model
from brain_tumor_mri.training.checkpoints import claim_output_dir
from brain_tumor_mri.training.dataset import SliceDataset, TrainTransform, eval_transform
from brain_tumor_mri.training.losses import Teacher
from brain_tumor_mri.training.parts import load_parts
from brain_tumor_mri.training.run import (
    EpochTable,
    create_repository,
    finish_run,
    prepare_output_dir,
    start_missing_processes,
    tune_for_cpu,
)
from brain_tumor_mri.training.trainer import WeightedLossTrainer, check_one_slice, validation_figures


def main(argv: list[str]) -> None:
    """Train, evaluate and save; everything is decided by the arguments."""
    # Arguments, and everything that can be found wrong before hours are spent.
    start_missing_processes()
    quiet_decoders()
    args = parse_arguments(argv)
    output_dir = Path(args.training.output_dir)
    main_process = args.training.process_index == 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of weight files; the training's own stays
    tune_for_cpu(args.training)
    sizes = parse_size_schedule(args.model.train_sizes, args.model.image_size, args.training.num_train_epochs)
    held = claim_output_dir(output_dir) if main_process else None  # no second training into it
    if args.training.push_to_hub and main_process:
        args.training.hub_model_id = create_repository(args.training)

    set_seed(args.training.seed)
    model = build_model(
        args.model.model_name_or_path,
        revision=args.model.model_revision,
        from_scratch=args.model.from_scratch,
        image_size=args.model.image_size,
        names=args.data.names,
    )
    if args.training.per_device_train_batch_size == 1:
        check_one_slice(model, min(size for size, _ in sizes))
    teacher = None
    if args.model.teacher:
        teacher = Teacher(TumorClassifier.from_pretrained(args.model.teacher).model, model.config)

    # Data, and where an earlier start of this run got to.
    parts = load_parts(args, progress=main_process)
    checkpoint = prepare_output_dir(args, parameters=model.num_parameters(), data=parts.fingerprints)

    # Trainer.
    trainer = WeightedLossTrainer(
        model=model,
        args=args.training,
        train_dataset=SliceDataset(
            parts.train,
            TrainTransform(model.config, args.augmentation),
            seed=args.training.seed,
            outlines=parts.outlines,
            shares=draw_shares(parts.train, args.collections.balance),
            length=args.collections.epoch_slices,
        ),
        eval_dataset=SliceDataset(parts.validation, eval_transform(model.config)),
        compute_metrics=validation_figures,
        class_weights=parts.class_weights,
        size_schedule=sizes,
        weight_averaging=args.model.weight_averaging,
        half_weights=args.model.half_weights,
        schedule_epochs=args.model.schedule_epochs,
        teacher=teacher,
        teacher_weight=args.model.teacher_weight,
        mixup=args.model.mixup,
        guidance=args.guidance.guidance if parts.outlines is not None else 0.0,
        optimizer_cls_and_kwargs=optimizer_class(args),
        callbacks=[EpochTable(output_dir)],
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # The best checkpoint in plain Hub layout; its figures are those of the stored file, run as users run it.
    trainer.save_model()
    if main_process:
        print(finish_run(args, parts, trainer, result))
    trainer.accelerator.wait_for_everyone()
    if held:
        held.release()
    if args.training.push_to_hub and main_process:
        print(publish_run(output_dir, trainer.hub_model_id, token=args.training.hub_token).url)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
