"""The released models by name: what they are, and where they are on the Hub; ``released()["model-lite"]``.

``brain-tumor-mri publish model --register NAME`` writes Hub id, commit, size and figures into ``registry.json``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json

REGISTRY = Path(__file__).with_name("registry.json")
CLONE = Path(__file__).resolve().parents[2]
"""Where a clone has the folders of the released models, each by its name."""


@dataclass(frozen=True)
class ReleasedModel:
    """A released model.

    Attributes:
        words: what it is, one line.
        hub_id: ``owner/name`` on the Hub; None while it is not there, and so are all that follow.
        revision: the commit, so that everybody who asks for the name gets the same weights.
        size_bytes: of the safetensors.
        weights_sha256: of the weights.
        protocol: what ``accuracy`` was measured under.
        accuracy: ``{"value", "low", "high"}`` in [0, 1].
    """

    words: str
    hub_id: str | None = None
    revision: str | None = None
    size_bytes: int | None = None
    weights_sha256: str | None = None
    protocol: str | None = None
    accuracy: dict[str, float] | None = None


def released() -> dict[str, ReleasedModel]:
    """Return every released model by name, the default first."""
    return {name: ReleasedModel(**entry) for name, entry in read_json(REGISTRY).items()}


def folder_of(name: str) -> Path | None:
    """Return the folder of a clone that has this released model; None elsewhere."""
    folder = CLONE / name
    return folder if name in released() and folder.is_dir() else None


def on_hub(name: str) -> tuple[str, str | None] | None:
    """Return Hub id and commit of a released model; None where the name is none's."""
    model = released().get(name)
    if model is None:
        return None
    if model.hub_id is None:
        raise UserError(f"{name} is not on the Hub yet; clone the project, and give the path of its folder {name}/")
    return model.hub_id, model.revision


def register(name: str, **published: Any) -> None:
    """Write where a released model is on the Hub; ``published`` are fields of ``ReleasedModel``."""
    models = released()
    check_name(name)
    models[name] = ReleasedModel(models[name].words, **published)
    entries = {each: asdict(model) for each, model in models.items()}
    write_json(REGISTRY, {n: {key: v for key, v in entry.items() if v is not None} for n, entry in entries.items()})


def check_name(name: str) -> None:
    """Refuse a name that is no released model's."""
    if name not in released():
        raise UserError(f"--register {name}: the released models are {', '.join(released())}")
