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

from brain_tumor_mri.data import br35h as external
from brain_tumor_mri.data import collections, outlines
from brain_tumor_mri.data import slices as data
from brain_tumor_mri.data.protocols import draw_seed
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation import split as evaluation
from brain_tumor_mri.evaluation.record import describe_data, describe_model, run_record
from brain_tumor_mri.hub import plan_model as publish
from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.reports import tables as report
from brain_tumor_mri.training import arguments
from brain_tumor_mri.training import backbone as modeling
from brain_tumor_mri.training import dataset as transforms
from brain_tumor_mri.training import trainer as training
from brain_tumor_mri.training.run import (
    EpochTable,
    describe_training,
    epoch_rows,
    prepare_output_dir,
    split_fingerprint,
    start_missing_processes,
    tune_for_cpu,
    write_run,
)


def main(argv: list[str]) -> None:
    """Train, evaluate and save; everything is decided by the arguments."""
    # Arguments, and everything that can be found wrong before hours are spent.
    start_missing_processes()
    quiet_decoders()
    args = arguments.parse_arguments(argv)
    output_dir = Path(args.training.output_dir)
    main_process = args.training.process_index == 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of weight files; the training's own stays
    tune_for_cpu(args.training)
    sizes = arguments.parse_size_schedule(args.model.train_sizes, args.model.image_size, args.training.num_train_epochs)
    if (output_dir / "metrics.json").is_file():
        raise UserError(f"{output_dir}: holds a finished run; choose another --output_dir, or remove it to train anew")

    # Data: every file is decoded once here.
    slices = data.load_slices(
        args.data.data_dir,
        args.protocol,
        seed=draw_seed(args.training.to_dict()),
        skip_unreadable=args.data.skip_unreadable,
        progress=main_process,
    )
    class_weights = data.resolve_class_weights(args.data.class_weights, slices.splits["train"]["label"])
    train_part, validation_part = slices.splits["train"], slices.splits["validation"]
    tumours = external.load_external(args.external.external_dir) if args.external.external_dir else None
    if tumours and args.external.external_train:
        train_part = data.with_slices(train_part, tumours["train"], args.external.external_repeats)
        validation_part = data.with_slices(validation_part, tumours["validation"])
    further = None
    if args.collections.collections_dir:
        further = collections.load_collections(args.collections.collections_dir, args.protocol.collection)
        train_part = data.with_slices(train_part, further["train"])
        validation_part = data.with_slices(validation_part, further["validation"])
    guide = args.guidance.outlines_dir
    drawn = outlines.load_outlines(guide, args.external.external_dir) if guide else None

    # Model and transforms.
    set_seed(args.training.seed)
    model = modeling.build_model(
        args.model.model_name_or_path,
        revision=args.model.model_revision,
        from_scratch=args.model.from_scratch,
        image_size=args.model.image_size,
    )
    parts = {"train": train_part, "validation": validation_part, "test": slices.splits["test"]}
    fingerprints = {"data_fingerprint": slices.fingerprint, "split_fingerprint": split_fingerprint(parts)}
    checkpoint = prepare_output_dir(args, parameters=model.num_parameters(), data=fingerprints)
    augment = transforms.TrainTransform(model.config, args.augmentation)
    preprocess = transforms.eval_transform(model.config)
    teacher = None
    if args.model.teacher:
        teacher = training.Teacher(TumorClassifier.from_pretrained(args.model.teacher).model, model.config)

    # Trainer.
    trainer = training.WeightedLossTrainer(
        model=model,
        args=args.training,
        train_dataset=transforms.SliceDataset(
            train_part,
            augment,
            seed=args.training.seed,
            outlines=drawn,
            shares=collections.draw_shares(train_part, args.collections.balance),
            length=args.collections.epoch_slices,
        ),
        eval_dataset=transforms.SliceDataset(validation_part, preprocess),
        compute_metrics=training.validation_figures,
        class_weights=class_weights,
        size_schedule=sizes,
        weight_averaging=args.model.weight_averaging,
        half_weights=args.model.half_weights,
        schedule_epochs=args.model.schedule_epochs,
        teacher=teacher,
        teacher_weight=args.model.teacher_weight,
        mixup=args.model.mixup,
        guidance=args.guidance.guidance if guide else 0.0,
        optimizer_cls_and_kwargs=arguments.optimizer_class(args),
        callbacks=[EpochTable(output_dir)],
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # The best checkpoint in plain Hub layout; its figures are those of the stored file, run as users run it.
    trainer.save_model()
    if trainer.is_world_process_zero():
        classifier = TumorClassifier.from_pretrained(output_dir, device=args.training.device)
        held_out = ("test",) if args.protocol.train_on_validation else ("validation", "test")
        record = run_record(
            protocol=args.protocol,
            model=describe_model(str(output_dir), classifier),
            data=describe_data(args.data.data_dir, slices),
            splits={n: evaluation.evaluate_split(classifier, slices.splits[n], progress=True) for n in held_out},
            config=arguments.run_settings(args),
            training=describe_training(trainer, result, class_weights),
            external=tumours
            and evaluation.evaluate_external(
                classifier, tumours, slices.splits, with_threshold="validation" in held_out, progress=True
            ),
        )
        write_run(output_dir, record, epoch_rows(trainer.state.log_history))
        print(report.summary_table([record]) + "\n" + report.class_table(record))
        if tumours:
            print(report.external_table([record]))
        print(
            f"\nThe model is in {output_dir}. Next:\n"
            f"  brain-tumor-mri calibrate --model {output_dir} --data_dir {args.data.data_dir}\n"
            f"  brain-tumor-mri predict --model {output_dir} IMAGE\n"
            f"  brain-tumor-mri export --model {output_dir}"
        )
    trainer.accelerator.wait_for_everyone()
    if args.training.push_to_hub and trainer.is_world_process_zero():
        print(publish.publish_run(output_dir, trainer.hub_model_id, token=args.training.hub_token).url)


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
