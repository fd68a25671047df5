"""One preprocessing for training-time evaluation, classifier and pipeline; augmentation that can be reproduced."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor

from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.training.dataset import AugmentationArguments, SliceDataset, TrainTransform, eval_transform

NO_CHANGE = AugmentationArguments(rotation=0, horizontal_flip=0, brightness=0, contrast=0)


def test_eval_transform_processor_and_classifier_agree_pixel_for_pixel(tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    processor = AutoImageProcessor.from_pretrained(tiny_model_dir)
    classifier = TumorClassifier.from_pretrained(tiny_model_dir)
    transform = eval_transform(config)
    rng = np.random.default_rng(0)
    for shape in ((224, 224), (512, 512), (300, 200), (90, 131)):
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(transform(image), expected)
        assert np.array_equal(classifier.preprocess(image), expected.numpy())
        assert expected.shape == (3, 224, 224)


def test_training_without_augmentation_is_the_eval_transform(tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8))
    assert torch.equal(TrainTransform(config, NO_CHANGE)(image), eval_transform(config)(image))


def test_each_augmentation_changes_the_image(tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    plain = eval_transform(config)(image)
    none = {"rotation": 0, "horizontal_flip": 0, "brightness": 0, "contrast": 0}
    for name, value in {
        "rotation": 15,
        "horizontal_flip": 1,
        "brightness": 0.5,
        "contrast": 0.5,
        "translation": 0.2,
        "scaling": 0.2,
    }.items():
        torch.manual_seed(0)
        changed = TrainTransform(config, AugmentationArguments(**(none | {name: value})))(image)
        assert not torch.equal(changed, plain), name
    mirrored = TrainTransform(config, AugmentationArguments(**(none | {"horizontal_flip": 1})))(image)
    assert torch.equal(mirrored, plain.flip(-1))


def test_an_item_depends_on_seed_epoch_and_index_alone(tiny_model_dir, phantom_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    split = load_slices(phantom_dir).splits["train"]
    transform = TrainTransform(config, AugmentationArguments())

    def item(seed: int, epoch: int, index: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        dataset = SliceDataset(split, transform, seed=seed)
        dataset.set_epoch(epoch)
        state = torch.get_rng_state()
        pixels = dataset[index]["pixel_values"]
        assert torch.equal(torch.get_rng_state(), state)
        return pixels

    assert torch.equal(item(0, 1, 2, global_seed=3), item(0, 1, 2, global_seed=4))
    assert not torch.equal(item(0, 1, 2, 0), item(0, 2, 2, 0))
    assert not torch.equal(item(0, 1, 2, 0), item(1, 1, 2, 0))


def test_workers_that_stay_see_each_new_epoch_in_what_is_drawn_and_how_it_is_changed(tiny_model_dir, phantom_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    split = load_slices(phantom_dir).splits["train"]
    shares = np.full(len(split), 1 / len(split))
    dataset = SliceDataset(split, TrainTransform(config, AugmentationArguments()), seed=1, shares=shares, length=6)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        here = torch.stack([dataset[i]["pixel_values"] for i in range(6)])
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), here), epoch
    dataset.set_epoch(0)
    assert not torch.equal(torch.stack([dataset[i]["pixel_values"] for i in range(6)]), here)


def test_items_are_the_models_inputs(tiny_model_dir, phantom_dir):
    split = load_slices(phantom_dir).splits["test"]
    dataset = SliceDataset(split, eval_transform(AutoConfig.from_pretrained(tiny_model_dir)))
    assert len(dataset) == len(split)
    item = dataset[3]
    assert item["labels"] == split[3]["label"]
    assert item["pixel_values"].dtype == torch.float32
    with Image.open(phantom_dir / split[3]["path"]) as image:
        assert torch.equal(item["pixel_values"], dataset.transform(image.convert("RGB")))
