"""Which training images validate where the published folders name none: drawn by group, or one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from ..errors import UserError
from .folders import FoundSlice


def random_draw(train: Sequence[FoundSlice], groups: Sequence[str], fraction: float, seed: int) -> list[bool]:
    """Hold out single images, stratified by class, as ``datasets`` draws them."""
    names = sorted({f.label for f in train})
    features = datasets.Features({"label": datasets.ClassLabel(names=names), "index": datasets.Value("int64")})
    rows = {"label": [f.label for f in train], "index": list(range(len(train)))}
    table = datasets.Dataset.from_dict(rows, features=features)
    chosen = set(table.train_test_split(fraction, stratify_by_column="label", seed=seed)["test"]["index"])
    return [i in chosen for i in range(len(train))]


def group_draw(train: Sequence[FoundSlice], groups: Sequence[str], fraction: float, seed: int) -> list[bool]:
    """Hold out whole groups, about ``fraction`` of each class (scikit-learn's StratifiedGroupKFold, its first fold)."""
    labels = [f.label for f in train]
    smallest = min(Counter(labels).values())
    if smallest < 2:
        raise UserError("a class has a single training image, so none can be held out for validation; add images")
    folds = StratifiedGroupKFold(min(max(2, round(1 / fraction)), smallest), shuffle=True, random_state=seed)
    _, held_out = next(folds.split(np.zeros(len(train)), labels, groups))
    chosen = set(held_out.tolist())
    return [i in chosen for i in range(len(train))]
