"""How well the class can be told from the source collection alone, by classifiers that cannot see a tumour.

    python benchmarks/accuracy/shortcut.py --data_dir ../shared/data/brain-tumor-mri-dataset \
        --external_dir ../shared/data/br35h-tumour --model model

Three blind classifiers learn the Kaggle set from an image's border, its histogram, or its framing. They and a full
model are then asked about tumours of Br35H, the collection of most `notumor` images: whoever learned the collections
answers `notumor`. The figure shows no pixel of any image. With `--work_dir` the same command takes an interrupted run
up again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import add_data_arguments, run
from brain_tumor_mri.data.folders import scan_folders
from brain_tumor_mri.data.outlines import Outlines, external_outlines, outline_mask
from brain_tumor_mri.data.protocols import OFFICIAL, PARTS, PATIENT_DISJOINT, ProtocolArguments, assign, leaking_share
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.metrics import classification_figures, mean_figure
from brain_tumor_mri.evaluation.record import describe_data, describe_model, run_record
from brain_tumor_mri.files import read_json
from brain_tumor_mri.images.read import load_image
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.labels import LABEL2ID, LABELS
from brain_tumor_mri.reports.tables import percent

SIDE, FRAME, BLOCK = 224, 11, 8  # pixels: a slice's side, the width of its border (5 %), the length of a border block
PATCH, STRIDE, SHOWN = 32, 16, 3  # occlusion: pixels, pixels, tumours in the figure
NOTUMOR = LABEL2ID["notumor"]
OcclusionMap = tuple[np.ndarray, Outlines, np.ndarray]  # change of P(tumour), tumour outlines, head mask
SEES = {
    "border": "the outermost 5 % of the image: block means along it; mean, spread and maximum of each side",
    "histogram": "the 64-bin histogram of grey values",
    "framing": "the file's colour mode (grey or RGB), mean brightness, the head's bounding box",
}


def border_features(grey: np.ndarray) -> np.ndarray:
    """Return what the border of a (224, 224) uint8 slice shows: 4 x (28 block means, mean, spread, maximum), 0..255."""
    sides = np.stack([grey[:FRAME], grey[-FRAME:], grey[:, :FRAME].T, grey[:, -FRAME:].T]).astype(np.float64)
    blocks = sides.reshape(4, FRAME, SIDE // BLOCK, BLOCK).mean((1, 3))
    return np.hstack([blocks.ravel(), sides.mean((1, 2)), sides.std((1, 2)), sides.max((1, 2))])


def histogram_features(grey: np.ndarray) -> np.ndarray:
    """Return the share, 0..1, of a uint8 slice's pixels in each of 64 bins of grey values."""
    return np.bincount(grey.ravel() // 4, minlength=64) / grey.size


def framing_features(grey: np.ndarray, mode: str) -> np.ndarray:
    """Return whether the file is grey, mean brightness, and the head's top, bottom, left and right, all 0..1."""
    mask = head_mask(grey)
    edges = [np.flatnonzero(mask.any(axis))[[0, -1]] / SIDE if mask.any() else [0, 0] for axis in (1, 0)]
    return np.hstack([mode == "L", grey.mean() / 255, *edges])


def head_mask(grey: np.ndarray) -> np.ndarray:
    """Return bool, the largest region above a tenth of the slice's 99th percentile, its holes filled."""
    regions, count = ndimage.label(grey > 0.1 * np.percentile(grey, 99))
    largest = np.bincount(regions.ravel(), minlength=2)[1:].argmax() + 1
    return ndimage.binary_fill_holes(regions == largest) if count else np.zeros_like(grey, bool)


def grey_slice(path: Path) -> np.ndarray:
    """Return a file as uint8 (224, 224)."""
    return np.asarray(load_image(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def blind_features(path: Path) -> np.ndarray:
    """Return a file's features of all three kinds, one after the other; ``columns`` finds them again."""
    grey = grey_slice(path)
    with Image.open(path) as file:
        return np.hstack([border_features(grey), histogram_features(grey), framing_features(grey, file.mode)])


def columns(features: np.ndarray, name: str) -> np.ndarray:
    """Return the part of ``blind_features`` rows that the blind classifier ``name`` may see."""
    return features[:, {"border": slice(0, -70), "histogram": slice(-70, -6), "framing": slice(-6, None)}[name]]


def train_blind(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> tuple[HistGradientBoostingClassifier, dict[str, Any]]:
    """Fit boosted trees on (N, F) features and (N,) labels; the validation part's log loss chooses size and number."""

    def fit(leaves: int, count: int) -> HistGradientBoostingClassifier:
        trees = HistGradientBoostingClassifier(
            max_leaf_nodes=leaves, max_iter=count, learning_rate=0.1, early_stopping=False, random_state=seed
        )
        return trees.fit(*train)

    loss, leaves, count = min(
        (float(log_loss(validation[1], rows, labels=range(len(LABELS)))), leaves, count)
        for leaves in (4, 16)
        for count, rows in enumerate(fit(leaves, 150).staged_predict_proba(validation[0]), start=1)
    )
    return fit(leaves, count), {"max_leaf_nodes": leaves, "max_iter": count, "validation_log_loss": loss}


def called_tumour(probabilities: np.ndarray) -> dict[str, Any]:
    """Return the share of images (N, 4) called any tumour, with its 95 % bootstrap interval over images."""
    answers = probabilities.argmax(1)
    return {
        "called_tumour": mean_figure(answers != NOTUMOR, None),
        "answers": dict(zip(LABELS, np.bincount(answers, minlength=len(LABELS)).tolist(), strict=True)),
    }


def images_met(model: str, data_dir: Path, test_paths: Sequence[str]) -> dict[str, Any]:
    """Return the protocol a model was made under, and which of the test images it then met, as its record tells."""
    record = Path(model) / "metrics.json"
    made_under = read_json(record)["protocol"] if record.is_file() else "unknown"
    name, _, fold = made_under.partition(" fold ")
    if name not in ("official", PATIENT_DISJOINT):
        return {"protocol": made_under}
    slices = assign(scan_folders(data_dir)[0], ProtocolArguments(name, int(fold or 1)), seed=42).slices
    group = {s.relative: s.group for s in slices}
    met = [s.relative for s in slices if s.part != "test"]
    groups = leaking_share([group[path] for path in met], [group[path] for path in test_paths])
    return {"protocol": made_under, "test_images_met": leaking_share(met, test_paths), "of_groups_met": groups}


def occlusion(classifier: TumorClassifier, path: Path) -> np.ndarray:
    """Return the change of P(tumour), (13, 13) float, when a patch of the slice's median grey hides each place."""
    slice_ = np.asarray(load_image(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    places = range(0, SIDE - PATCH + 1, STRIDE)
    images = [slice_]
    for top in places:
        for left in places:
            images.append(slice_.copy())
            images[-1][top : top + PATCH, left : left + PATCH] = int(np.median(grey_slice(path)))
    tumour = 1 - ask(classifier, images)[:, NOTUMOR]
    return (tumour[1:] - tumour[0]).reshape(len(places), len(places))


def ask(classifier: TumorClassifier, images: Sequence[Any]) -> np.ndarray:
    """Return the full model's probabilities, (N, 4)."""
    return np.array([[answer.probabilities[name] for name in LABELS] for answer in classifier.predict(images)])


def read_external(folder: Path) -> tuple[list[Path], dict[str, Outlines]]:
    """Return the tumours' files, and by name their outlines, (P, 2) x and y as shares of the slice."""
    known = external_outlines(folder)
    paths = sorted((folder / "images").glob("*.jpg"))
    if not paths or not {f"images/{path.name}" for path in paths} <= known.keys():
        raise UserError(f"{folder}: give --external_dir a folder with images/*.jpg, each with a line in borders.jsonl")
    return paths, {Path(name).name: outlines for name, outlines in known.items()}


def most_confident(paths: Sequence[Path], probabilities: np.ndarray) -> list[int]:
    """Return the tumours that are called notumor with the highest confidence, without near-copies of one another."""
    chosen: list[int] = []
    small: list[np.ndarray] = []
    for i in np.argsort(-probabilities[:, NOTUMOR], kind="stable"):
        if len(chosen) < SHOWN and probabilities[i].argmax() == NOTUMOR:
            pixels = grey_slice(paths[i])[::4, ::4].ravel()
            if all(np.corrcoef(pixels, other)[0, 1] < 0.9 for other in small):
                chosen.append(int(i))
                small.append(pixels)
    return chosen


def mean_changes(change: np.ndarray, outlines: Outlines, head: np.ndarray) -> dict[str, float | None]:
    """Return the mean change of P(tumour) over patches centred on the tumour, on the rest of the head, beside it."""
    centres = slice(PATCH // 2, SIDE - PATCH // 2 + 1, STRIDE)
    tumour, head = outline_mask(outlines, (SIDE, SIDE))[centres, centres], head[centres, centres]
    regions = {"tumour": tumour, "rest_of_head": head & ~tumour, "beside_the_head": ~head & ~tumour}
    return {name: float(change[region].mean()) if region.any() else None for name, region in regions.items()}


def kept(folder: Path | None, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what ``compute`` gives, from ``folder`` where an earlier run left it."""
    if folder is None:
        return compute()
    if not (folder / f"{name}.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "part.npy", compute())
        (folder / "part.npy").replace(folder / f"{name}.npy")
    return np.load(folder / f"{name}.npy")


def draw(record: dict[str, Any], maps: Sequence[OcclusionMap], path: Path) -> None:
    """Draw the record's figures, and the occlusion maps, into a PNG 1200 pixels wide."""
    rows = list(record["classifiers"].values())[::-1]
    colours = ["#0072B2", *["#E69F00"] * (len(rows) - 1)]
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    figure.suptitle(f"The class told without seeing a tumour: Kaggle set, {record['protocol']}", fontsize=14)
    bars, heat = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    bars.supxlabel(record["note"], fontsize=9)
    auroc = [row["test"]["per_class"]["notumor"]["auroc"] for row in rows]
    called = [row["external"]["called_tumour"] for row in rows]
    external = record["external"]
    titles = (
        "Test part:\nAUROC, tumour or none",
        f"{external['images']} tumours of {external['name']}:\ncalled a tumour",
    )
    panels = bars.subplots(1, 2, sharey=True)
    for axes, title, figures in zip(panels, titles, (auroc, called), strict=True):
        value, low, high = (np.array([f[key] for f in figures]) for key in ("value", "low", "high"))
        axes.barh(range(len(rows)), value, 0.5, color=colours, xerr=(value - low, high - value), capsize=3)
        for y, f in enumerate(figures):
            axes.text(0.01, y + 0.27, percent(f), va="bottom")
        axes.set_title(title, fontsize=11)
        axes.set(xlim=(0, 1.03), xticks=np.linspace(0, 1, 5), ylim=(-0.5, len(rows) - 0.4))
    panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    panels[0].axvline(0.5, color="black", linewidth=1, linestyle=":")
    heat.suptitle("Where the full model looks in tumours that it calls notumor", fontsize=11)
    edge, limit = (PATCH - STRIDE) // 2, max((abs(change).max() for change, _, _ in maps), default=0)
    for i, (change, outlines, head) in enumerate(maps):
        axes = heat.add_subplot(2, 2, i + 1)
        axes.set_title(f"P(notumor) {record['occlusion']['tumours'][i]['p_notumor']:.4f}", fontsize=10)
        extent = (edge, SIDE - edge, SIDE - edge, edge)
        shown = axes.imshow(change, cmap="PuOr", vmin=-limit, vmax=limit, extent=extent)
        axes.contour(head, levels=[0.5], colors="0.6", linewidths=0.8)
        for outline in outlines:
            axes.plot(*np.vstack([outline, outline[:1]]).T * SIDE, color="black", linewidth=1.5)
        axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[])
    if maps:
        label = f"change of P(tumour) where a {PATCH} px patch hides the slice"
        heat.colorbar(shown, ax=heat.axes, location="bottom", label=label, aspect=40)
        key = heat.add_subplot(2, 2, 4)
        key.text(0.5, 0.5, "black: the tumour's outline\ngrey: the head's outline", ha="center", va="center")
        key.axis("off")
    figure.savefig(path, dpi=100)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record, and draw its figure."""
    tumours, outlines = read_external(args.external_dir)
    protocol = ProtocolArguments(args.protocol, args.fold)
    classifier = TumorClassifier.from_pretrained(args.model)
    data = load_slices(args.data_dir, protocol)
    model = describe_model(args.model, classifier)
    key, weights = f"{data.fingerprint[:8]}-{args.protocol}-{args.fold}", model["weights_sha256"][:8]
    paths = {part: data.splits[part]["path"][:] for part in PARTS}
    labels = {part: np.asarray(data.splits[part]["label"][:]) for part in PARTS}
    files = {part: [args.data_dir / path for path in paths[part]] for part in PARTS} | {"external": tumours}
    features = {
        part: kept(args.work_dir, f"{key}-{part}", lambda p=part: np.stack([*map(blind_features, files[p])]))
        for part in files
    }
    full: dict[str, list[np.ndarray]] = {"test": [], "external": []}
    for part, chunks in full.items():
        for i in range(0, len(files[part]), 64):
            images = files[part][i : i + 64]
            chunks.append(kept(args.work_dir, f"{key}-{part}-{weights}-{i}", lambda c=images: ask(classifier, c)))

    classifiers: dict[str, Any] = {}
    answers: dict[str, list[np.ndarray]] = {}
    for name, sees in SEES.items():
        trees, settings = train_blind(*((columns(features[part], name), labels[part]) for part in PARTS[:2]))
        answers[name] = [trees.predict_proba(columns(features[part], name)) for part in full]
        classifiers[name] = {"label": f"blind: {name} only", "sees": sees, "settings": settings}
    answers["full model"] = [np.vstack(chunks) for chunks in full.values()]
    met = images_met(args.model, args.data_dir, paths["test"])
    classifiers["full model"] = {"label": f"full model\n({model['architecture']})", "sees": "the whole image", **met}
    for name, (test, external) in answers.items():
        classifiers[name]["test"] = classification_figures(test, labels["test"], groups=data.splits["test"]["group"][:])
        classifiers[name]["external"] = called_tumour(external)

    maps, occluded = [], []
    for i in most_confident(tumours, answers["full model"][1]):
        name, head = tumours[i].name, head_mask(grey_slice(tumours[i]))
        change = kept(args.work_dir, f"{weights}-{name}", lambda i=i: occlusion(classifier, tumours[i]))
        maps.append((change, outlines[name], head))
        row = {"file": name, "p_notumor": float(answers["full model"][1][i, NOTUMOR])}
        row |= {"largest_rise_of_p_tumour": float(change.max())}
        occluded.append(row | {"mean_change_of_p_tumour": mean_changes(change, outlines[name], head)})
    note = "95 % intervals: bootstrap over groups of patients and copies (left), over images (right)."
    if "test_images_met" in met:
        classifiers["full model"]["label"] += "*"
        note += (
            f"\n* made under `{met['protocol']}`: in training or validation it met"
            f" {100 * met['test_images_met']:.1f} % of these test images,\nand a copy or the patient of"
            f" {100 * met['of_groups_met']:.1f} %, so its bar on the left is flattered."
        )
    described = describe_data(str(args.data_dir), data)
    record = run_record(protocol=protocol, model=model | met, data=described, splits={}, config={"seed": 0})
    for key in ("splits", "training"):  # the full model's figures on images it met must not pass for the protocol's
        del record[key]
    record["versions"] |= {name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "matplotlib")}
    record |= {
        "benchmark": "shortcut",
        "note": note,
        "external": {
            "name": args.external_dir.resolve().name,
            "images": len(tumours),
            "interval": {"method": "percentile bootstrap", "confidence": 0.95, "resamples": 2000, "over": "image"},
            "interval_note": "near-copies among these images are not grouped, so the intervals are too narrow",
        },
        "classifiers": classifiers,
        "occlusion": {"patch": PATCH, "stride": STRIDE, "side": SIDE, "fill": "median grey", "tumours": occluded},
    }
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(record, maps[:SHOWN], args.plot)
    return record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, (PATIENT_DISJOINT, OFFICIAL))
    parser.add_argument("--model", default="model", help="folder or Hub id of the full model (%(default)s)")
    parser.add_argument("--work_dir", type=Path, help="keep what is computed here, to take an interrupted run up again")
    parser.add_argument("--plot", type=Path, default=Path("results/shortcut/shortcut.png"), help="default: %(default)s")


def show(record: dict[str, Any], _: argparse.Namespace) -> None:
    for name, row in record["classifiers"].items():
        test = {key: percent(row["test"][key]) for key in ("accuracy", "balanced_accuracy")}
        test["auroc"] = percent(row["test"]["per_class"]["notumor"]["auroc"])
        print(name, test, "tumours called a tumour", percent(row["external"]["called_tumour"]))


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, show=show, output="results/shortcut/metrics.json")


if __name__ == "__main__":
    raise SystemExit(main())
