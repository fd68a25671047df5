"""The page's classifier: ``ModelHandle("model")`` loads it in the background, ``get()`` waits for it."""

import logging
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from pathlib import Path

from ..errors import UserError
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import find_model
from ..inference.registry import folder_of
from ..labels import LABELS

logger = logging.getLogger(__name__)


class ModelUnavailableError(UserError):
    """The weights could not be loaded; ``str(error)`` is one line for the page."""


class ModelHandle:
    """The classifier, loaded in the background so that the page answers before torch has been imported.

    Args:
        model_id: Hub id or folder.
        revision: Hub branch, tag or commit.
        name: how the model is called on the page and in answers; default ``model_id``, with ``@revision``.
    """

    def __init__(self, model_id: str, revision: str | None = None, name: str | None = None) -> None:
        self.model_id = model_id
        self.revision = revision
        self.name = name or (f"{model_id}@{revision}" if revision else model_id)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._loading = executor.submit(self._load)
        executor.shutdown(wait=False)

    def _load(self) -> TumorClassifier:
        try:
            return TumorClassifier.from_pretrained(self.model_id, revision=self.revision)
        except UserError as error:
            logger.error("%s", error)
            raise ModelUnavailableError(str(error)) from error
        except Exception as error:
            # A broken file fails in many places (safetensors, timm, ...): one line for the page, the rest in the log.
            logger.exception("loading %s failed", self.name)
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ModelUnavailableError(
                f"The model {self.name} could not be loaded ({type(error).__name__}: {reason}); "
                "copy or download it again"
            ) from error

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes as far as they are known without waiting: of a folder, or of a model that is there."""
        try:
            if Path(self.model_id).is_dir() or folder_of(self.model_id):
                return find_model(self.model_id, backend=None).labels or LABELS
            return self._loading.result(timeout=0).labels
        except (UserError, TimeoutError):
            return LABELS

    def get(self) -> TumorClassifier:
        """Wait until the model is there, and return it.

        Raises:
            ModelUnavailableError: it could not be loaded.
        """
        return self._loading.result()
