"""What pixels tell of sequence and skull: where it is sure, never against a header."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.appearance import NEVER, fit_head
from brain_tumor_mri.images.sequence import SequenceGuess
from brain_tumor_mri.images.volume import Volume
from brain_tumor_mri.inference.appearance import (
    FILE_NAME,
    TASKS,
    Appearance,
    AppearanceHeads,
    Head,
    grey_profile,
    load_appearance,
)
from brain_tumor_mri.inference.volume import _sequence


def slices(rng: np.random.Generator, shift: float, n: int = 40) -> np.ndarray:
    """Two features that tell the class in the same way everywhere, one that tells the collection."""
    return np.column_stack([rng.normal(0, 0.3, (n, 2)), np.full(n, shift)])


def test_a_head_is_measured_on_collections_left_out_and_is_silent_where_it_is_not_sure():
    rng = np.random.default_rng(0)
    features, labels, collections = [], [], []
    for collection in "abc":
        for name, place in (("t1", -1), ("t2", 1)):
            x = slices(rng, 5 * ord(collection))
            x[:, 0] += place
            features.append(x)
            labels += [name] * len(x)
            collections += [collection] * len(x)
    head, figures = fit_head(np.concatenate(features), labels, collections)
    assert (
        figures["right"] > 0.95
        and figures["n"] == 240
        and set(figures["collections"]) == {f"{c} {n}" for c in "abc" for n in ("t1", "t2")}
    )
    name, p = head.told(head.probabilities(np.array([[-2.0, 0, 5 * ord("b")]]))[0])
    assert name == "t1" and p > 0.6
    # a class that only a collection's look tells is never told
    noise = [c for c in "ab" for _ in range(60)]
    head, figures = fit_head(rng.normal(size=(120, 3)), ["t1", "t2"] * 60, noise)
    assert (head.limits == NEVER).all() or figures["told_by_collection"] < 0.5


def test_what_is_told_of_a_collection_is_measured_with_limits_that_saw_nothing_of_it():
    rng = np.random.default_rng(0)
    features, labels, collections = [], [], []
    for collection in "abcdef":
        for name, place in (("t1", -1), ("t2", 1)):
            x = slices(rng, 0)
            x[:, 0] += -place if collection == "f" else place  # there it is the other way round
            features.append(x)
            labels += [name] * len(x)
            collections += [collection] * len(x)
    head, figures = fit_head(np.concatenate(features), labels, collections)
    assert (head.limits == NEVER).all()  # with that collection among those that set them nothing is sure
    assert figures["collections"]["f t1"]["told"] > 0.5 and figures["collections"]["f t1"]["right_when_told"] == 0


def test_the_file_is_of_its_weights_and_a_damaged_one_is_a_line(tmp_path: Path):
    head = Head(("no", "yes"), np.ones((2, 43)), np.zeros(2), np.full(2, 0.6))
    heads = AppearanceHeads("abc", dict.fromkeys(TASKS, head), {"protocol": "none"})
    (tmp_path / FILE_NAME).write_text(json.dumps(heads.to_dict()))
    folder = SimpleNamespace(path=tmp_path, sha256=lambda: "abc")
    assert load_appearance(folder).to_dict() == heads.to_dict()
    assert load_appearance(SimpleNamespace(path=tmp_path, sha256=lambda: "other")) is None
    (tmp_path / FILE_NAME).write_text('{"schema": 1, "weights_sha256": "abc", "heads": {}}')
    with pytest.raises(UserError, match="is damaged"):
        load_appearance(folder)
    (tmp_path / FILE_NAME).unlink()
    assert load_appearance(folder) is None


def test_the_profile_ignores_brightness_and_place_and_survives_odd_pictures():
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-64:64, -64:64]) < 40
    picture = disc * (80 + 20 * rng.random((128, 128)))
    plain = grey_profile(Image.fromarray(np.uint8(picture)))
    np.testing.assert_allclose(grey_profile(Image.fromarray(np.uint8(2 * picture))), plain, atol=0.05)
    np.testing.assert_allclose(grey_profile(Image.fromarray(np.rot90(np.uint8(picture)).copy())), plain, atol=0.2)
    thin = np.zeros((128, 128), np.uint8)
    thin[60:69, 4:124] = 200
    for odd in (np.zeros((64, 64), np.uint8), thin, np.full((40, 50), 255, np.uint8)):
        assert np.isfinite(grey_profile(Image.fromarray(odd))).all()


def test_a_header_is_believed_before_pixels_and_a_name_is_contradicted_in_a_warning():
    volume = Volume("scan", np.zeros((2, 2, 2)), np.eye(4), sequence=SequenceGuess("t1", "TR 500 ms", "header"))
    seen = Appearance(12, "flair", 0.97, True)
    assert _sequence(volume, seen) == (volume.sequence, ())
    unknown = replace(volume, sequence=SequenceGuess())
    told, warnings = _sequence(unknown, seen)
    assert (told.name, told.source, warnings) == ("flair", "pixels", ()) and "FLAIR (97%)" in told.evidence
    assert _sequence(unknown, replace(seen, sequence=None)) == (unknown.sequence, ())
    named = replace(volume, sequence=SequenceGuess("t1", "file name says T1", "file name"))
    told, warnings = _sequence(named, seen)
    assert told.name == "t1" and "look like FLAIR" in warnings[0]
