"""What a user of the merged folder runs; this project must not be there, and is not.

python vanilla_answers.py FOLDER TEXTS.json LOGITS.npy [N_TOKENS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.modules["glora_deploy"] = None  # type: ignore[assignment]  # importing it fails from here on

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(folder: str, texts: str, logits: str, n_tokens: str = "512") -> None:
    """Load, tokenise, answer: ``(n, n_classes)`` float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    encoded = tokenizer(
        json.loads(Path(texts).read_text("utf-8")),
        truncation=True,
        max_length=int(n_tokens),
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        np.save(logits, model(**encoded).logits.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
