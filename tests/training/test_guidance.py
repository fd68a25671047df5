"""Training guided by outlines: masks that follow the augmentation, and what misplaced evidence costs."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from transformers import AutoConfig

from brain_tumor_mri.data.outlines import load_outlines
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import ANY_TUMOR, LABEL2ID, NO_TUMOR
from brain_tumor_mri.training.augmentation import AugmentationArguments
from brain_tumor_mri.training.dataset import SliceDataset, TrainTransform
from brain_tumor_mri.training.losses import UNKNOWN, EvidenceGuide, with_any_tumor_weight

GLIOMA, NONE = LABEL2ID["glioma"], LABEL2ID[NO_TUMOR]
WEIGHTS = with_any_tumor_weight(None)


class Evidence(torch.nn.Module):
    """A network whose last feature map is its input and whose head reads channel c for class c."""

    def __init__(self) -> None:
        super().__init__()
        self.global_pool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(4, 4, bias=False)
        self.fc.weight.data = torch.eye(4)

    def get_classifier(self) -> torch.nn.Linear:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.global_pool(x).flatten(1))


def cost(feature_map: torch.Tensor, labels: list[int], masks: torch.Tensor, weights: torch.Tensor = WEIGHTS) -> float:
    network = Evidence().train()
    guide = EvidenceGuide(network)
    return float(guide.misplaced_sum(network(feature_map), torch.tensor(labels), masks, weights))


def mask(*inside: tuple[int, int], side: int = 32) -> torch.Tensor:
    """A mask (1, side, side) with 1 at the given pixels."""
    pixels = torch.zeros(1, side, side, dtype=torch.uint8)
    for row, column in inside:
        pixels[0, row, column] = 1
    return pixels


def test_the_cost_is_the_share_of_positive_evidence_outside_the_cells_that_hold_tumour():
    features = torch.zeros(1, 4, 4, 4)
    features[0, GLIOMA, 0, 0] = 3.0  # the mask's only cell: pixels 0..7 of 32
    features[0, GLIOMA, 2, 3] = 1.0
    features[0, GLIOMA, 3, 3] = -5.0  # evidence against the class is none for it
    features[0, LABEL2ID["pituitary"], 1, 1] = 9.0  # evidence for another class is another matter
    tumour = mask((5, 2))[None]
    assert cost(features, [GLIOMA], tumour) == pytest.approx(0.25)
    doubled = WEIGHTS.clone()
    doubled[GLIOMA] = 2
    assert cost(features, [GLIOMA], tumour, doubled) == pytest.approx(0.5)


def test_a_tumour_of_unknown_type_is_guided_by_its_most_probable_tumour_class():
    features = torch.zeros(1, 4, 4, 4)
    features[0, NONE] = 7.0
    features[0, LABEL2ID["meningioma"], 0, 0] = 1.0
    features[0, LABEL2ID["meningioma"], 3, 0] = 3.0
    assert cost(features, [ANY_TUMOR], mask((0, 0))[None]) == pytest.approx(0.75)


def test_slices_without_tumour_outline_or_evidence_cost_nothing():
    features = torch.rand(4, 4, 4, 4)
    features[3] = -1
    masks = torch.stack([mask(), torch.full((1, 32, 32), UNKNOWN, dtype=torch.uint8), mask((1, 1)), mask((1, 1))])
    assert cost(features, [GLIOMA, GLIOMA, NONE, GLIOMA], masks) == 0


def test_following_the_gradient_moves_the_evidence_inside():
    torch.manual_seed(0)
    features = torch.rand(2, 4, 4, 4, requires_grad=True)
    masks = torch.stack([mask((0, 0)), mask((30, 30))])
    before = cost(features, [0, 1], masks)
    network = Evidence().train()
    guide = EvidenceGuide(network)
    for _ in range(30):
        loss = guide.misplaced_sum(network(features), torch.tensor([0, 1]), masks, WEIGHTS)
        (gradient,) = torch.autograd.grad(loss, features)
        features = (features - gradient).detach().requires_grad_()
    assert before > 0.8 > 0.2 > cost(features, [0, 1], masks)


def test_the_evidence_is_the_grad_cam_of_the_class():
    """For a network of timm that ends in pooling and a linear layer, by the definition with gradients."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4).eval()
    features = network.forward_features(torch.rand(1, 3, 64, 64)).detach().requires_grad_()
    logit = network.forward_head(features)[0, GLIOMA]
    (gradient,) = torch.autograd.grad(logit, features)
    grad_cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
    ours = torch.einsum("nchw,nc->nhw", features, network.get_classifier().weight[[GLIOMA]])
    assert grad_cam.std() > 0
    torch.testing.assert_close(grad_cam * features[0, 0].numel(), ours)  # before the ReLU, and but for a factor


def test_a_network_without_pooling_and_linear_layer_is_refused():
    with pytest.raises(UserError, match="--outlines_dir"):
        EvidenceGuide(timm.create_model("test_vit", num_classes=4))


@pytest.fixture
def strong(tiny_model_dir: Path) -> TrainTransform:
    """Every change of place at once, none of light."""
    config = AutoConfig.from_pretrained(tiny_model_dir)
    moves = {"rotation": 25, "translation": 0.1, "scaling": 0.2, "horizontal_flip": 0.5, "framing": 0.7}
    return TrainTransform(config, AugmentationArguments(**moves, brightness=0, contrast=0))


def test_the_mask_goes_where_the_tumour_goes(strong: TrainTransform):
    slice_ = Image.new("RGB", (300, 200))
    ImageDraw.Draw(slice_).ellipse((40, 20, 260, 190), fill=(70, 70, 70))
    ImageDraw.Draw(slice_).rectangle((90, 60, 149, 99), fill=(255, 255, 255))
    outline = np.array([(90, 60), (150, 60), (150, 100), (90, 100)]) / (300, 200)
    places = set()
    for seed in range(12):
        torch.manual_seed(seed)
        pixels, inside = strong.with_mask(slice_, [outline])
        bright = pixels[0] > (pixels[0].min() + pixels[0].max()) / 2
        overlap = (bright & (inside[0] == 1)).sum() / (bright | (inside[0] == 1)).sum()
        assert overlap > 0.85
        places.add(tuple(inside[0].nonzero().float().mean(0).int().tolist()))
    assert len(places) > 8


def test_an_image_is_changed_alike_with_and_without_its_mask(strong: TrainTransform, phantom_dir: Path):
    image = Image.open(next(phantom_dir.glob("Training/glioma/*.png"))).convert("RGB")
    torch.manual_seed(3)
    alone = strong(image)
    torch.manual_seed(3)
    together, unknown = strong.with_mask(image, None)
    assert torch.equal(alone, together) and (unknown == UNKNOWN).all()


def test_items_have_the_mask_of_their_path_none_for_healthy_and_unknown_for_untraced(
    phantom_dir: Path, strong: TrainTransform
):
    from brain_tumor_mri.data.slices import load_slices

    split = load_slices(phantom_dir).splits["train"]
    labels, paths = split["label"][:], split["path"][:]
    first, second = (labels.index(label) for label in (GLIOMA, NONE))
    square = np.array([(0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)])
    items = SliceDataset(split, strong, outlines={paths[first]: [square]})
    assert (items[first]["masks"] == 1).any() and (items[second]["masks"] == 0).all()
    other = labels.index(LABEL2ID["pituitary"])
    assert (items[other]["masks"] == UNKNOWN).all()


def test_outlines_are_found_by_path_for_slices_copies_mirror_images_and_br35h(tmp_path: Path):
    for name in ("figshare", "br35h"):
        (tmp_path / name).mkdir()
    square = [[0, 0], [127, 0], [127, 255], [0, 255]]
    (tmp_path / "figshare" / "borders.jsonl").write_text(json.dumps({"image_id": 7, "border": square}) + "\n")
    row = {"file": "y0.jpg", "width": 100, "height": 50, "borders": [[[49.5, 24.5]], [[0, 0]]]}
    (tmp_path / "br35h" / "borders.jsonl").write_text(json.dumps(row) + "\n")
    rows = ("path,figshare_id,mirrored,score,group", "Training/a.jpg,7,false,1,p1", "Training/b.jpg,7,true,1,p1")
    traced = "\n".join([*rows, "Training/c.jpg,,,,g1", ""])
    (tmp_path / "provenance.csv").write_text(traced)
    found = load_outlines(tmp_path / "figshare", tmp_path / "br35h", tmp_path / "provenance.csv")
    assert set(found) == {"images/7.jpg", "Training/a.jpg", "Training/b.jpg", "images/y0.jpg"}
    assert found["Training/a.jpg"][0][:, 0].max() == pytest.approx(127.5 / 512)
    assert found["Training/b.jpg"][0][:, 0].min() == pytest.approx(1 - 127.5 / 512)
    assert found["images/y0.jpg"][0].tolist() == [[0.5, 0.5]]
    with pytest.raises(UserError, match="no tumour outlines"):
        load_outlines(tmp_path)


def test_every_traced_training_tumour_has_its_outline_over_what_is_bright(real_data_dir: Path):
    """Enhanced tumours are brighter than the rest of the head: a check that outlines and files belong together."""
    from brain_tumor_mri.data.outlines import outline_mask
    from brain_tumor_mri.images.read import load_image

    shared = real_data_dir.parent
    if not (shared / "figshare-brain-tumor" / "borders.jsonl").is_file():
        pytest.skip("no Figshare outlines; data_scripts/download_figshare.py writes them")
    found = load_outlines(shared / "figshare-brain-tumor", shared / "br35h-tumour")
    paths = sorted(path for path in found if path.startswith("Training/meningioma"))[::25]
    brighter = []
    for path in paths:
        grey = np.asarray(load_image(real_data_dir / path).convert("L"), dtype=float)
        inside = outline_mask(found[path], grey.shape)
        brighter.append(grey[inside].mean() > grey[(grey > 20) & ~inside].mean())
    assert len(paths) > 20 and np.mean(brighter) > 0.9


def test_training_with_outlines_runs_and_records_them(phantom_dir: Path, tiny_model_dir: Path, tmp_path: Path):
    """Through train.py's own arguments; phantoms have no outlines, so the loss is that without, and says so nowhere."""
    from brain_tumor_mri.training import arguments

    (tmp_path / "borders.jsonl").write_text("")
    flags = ["--output_dir", str(tmp_path / "run"), "--outlines_dir", str(tmp_path), "--guidance", "0.3"]
    args = arguments.parse_arguments(flags)
    assert args.training.remove_unused_columns is False
    recorded = arguments.run_settings(args)
    assert recorded["outlines_dir"] == tmp_path.name and recorded["guidance"] == 0.3
    with pytest.raises(UserError, match="--mixup and --outlines_dir"):
        arguments.parse_arguments([*flags, "--mixup", "0.2"])
