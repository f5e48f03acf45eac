"""Every stage of a merged text network against the float64 merge, by the project's own rules.

The reference reads each text alone, without a token of padding, and all others read them in one
padded batch: a stage whose padding changed an answer would fail.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from glora_deploy.errors import ExportError
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.machine import Machine
from glora_deploy.merge.formula import merge, split_by_layer
from glora_deploy.parity import DEFAULT_LIMITS, Report, Step, judge
from glora_deploy.precision import Precision
from glora_deploy.store.export_record import MODEL_FILE

from .network import TokenClassifier
from .token_split import padded
from .train_glora import Trained

REFERENCE = "merged-fp64"
TEXTS, RANDOM = "test texts", "random tokens"
EXTRA_PADDING = 13
HALVES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Inputs:
    """One set of texts to compare on."""

    name: str
    ids: list[list[int]]
    """Token ids of each text, without padding."""
    texts: tuple[str, ...] | None = None
    """The texts themselves; None where there are none."""


def inputs_of(
    texts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, *, n_tokens: int
) -> list[Inputs]:
    """Real texts, and random tokens of the shortest and the longest lengths."""
    ids = tokenizer(list(texts), truncation=True, max_length=n_tokens)["input_ids"]
    rng = random.Random(0)
    known = sorted(set(tokenizer.get_vocab().values()) - {tokenizer.pad_token_id})
    lengths = (1, 2, n_tokens // 2, n_tokens)
    noise = [[rng.choice(known) for _ in range(length)] for length in lengths]
    return [Inputs(TEXTS, ids, tuple(texts)), Inputs(RANDOM, noise)]


def prove(trained: Trained, delta: Path, folder: Path, inputs: Sequence[Inputs]) -> Report:
    """Compare the supernet, the merged network in three precisions, the folder and its graph.

    Args:
        trained: What was merged.
        delta: Its delta's file.
        folder: What was written of it.
        inputs: As ``inputs_of`` makes them.

    Returns:
        The report, whether it passed or not.
    """
    pad_id, n_max = trained.network.pad_id, trained.network.vanilla.config.max_position_embeddings
    exact = _merged(trained, torch.float64)
    truth = {
        each.name: np.concatenate([_logits(exact, padded([ids], pad_id)) for ids in each.ids])
        for each in inputs
    }
    spread = float(np.std(truth[inputs[0].name]))
    session = OnnxSession(folder / MODEL_FILE)
    steps: list[Step] = []
    before: dict[str, tuple[str, NDArray[Any]]] = {}

    def add(stage: str, precision: Precision, each: Inputs, found: NDArray[Any]) -> None:
        reference = truth[each.name]
        step = judge(
            stage,
            each.name,
            found,
            [(REFERENCE, reference), *([before[each.name]] if each.name in before else [])],
            # As for images: what no text is may have its own spread.
            spread=spread if each.texts else np.maximum(spread, reference.std(axis=1)),
            limits=DEFAULT_LIMITS[precision],
        )
        steps.append(step)
        before[each.name] = stage, found

    halves = {precision: _merged(trained, dtype) for precision, dtype in HALVES.items()}
    for each in inputs:
        ids = padded(each.ids, pad_id)
        add("supernet-fp32", "fp32", each, _logits(trained.adapted.model, ids))
        add("merged-fp32", "fp32", each, _logits(trained.network, ids))
        if each.texts:
            answers = _vanilla_answers(folder, each.texts, ids.shape[1])
            add("folder-without-project-fp32", "fp32", each, answers)
        add("onnx-fp32", "fp32", each, _onnx_logits(session, ids, pad_id))
        room = n_max - ids.shape[1]
        if each.texts and room:
            wider = padded(each.ids, pad_id, extra=min(room, EXTRA_PADDING))
            add("onnx-fp32-more-padding", "fp32", each, _onnx_logits(session, wider, pad_id))
        for precision, network in halves.items():
            add(f"merged-{precision}", precision, each, _logits(network, ids))
    return Report(
        task="text",
        version="v1",
        precision="fp32",
        adapter_sha256=hashlib.sha256(delta.read_bytes()).hexdigest(),
        data=TEXTS,
        steps=tuple(steps),
        machine=Machine.here(),
    )


def _merged(trained: Trained, dtype: torch.dtype) -> TokenClassifier:
    """The merged network: each layer computed in float64 and rounded once, the rest rounded."""
    network = deepcopy(trained.network).to(dtype)
    frozen = trained.adapted.frozen()
    supports = trained.adapted.supports(trained.subnet)
    with torch.no_grad():
        for name, tensors in split_by_layer(supports, trained.adapted.shapes).items():
            w0, b0 = frozen[f"{name}.weight"], frozen.get(f"{name}.bias")
            weight, bias = merge(w0, b0, tensors, dtype)
            module = network.get_submodule(name)
            state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
            module.load_state_dict(state)
    return network


@torch.inference_mode()
def _logits(network: nn.Module, ids: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = network(ids).to(torch.float64).numpy()
    return found


def _onnx_logits(session: OnnxSession, ids: Tensor, pad_id: int) -> NDArray[Any]:
    mask = ids.ne(pad_id).long()
    found: NDArray[Any] = session.run(
        "logits", {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    )
    return found


def _vanilla_answers(folder: Path, texts: Sequence[str], n_tokens: int) -> NDArray[Any]:
    """Of a process that has transformers and not this project.

    Raises:
        ExportError: If it could not load the folder.
    """
    script = Path(__file__).with_name("vanilla_answers.py")
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch, "texts.json"), Path(scratch, "logits.npy")
        question.write_text(json.dumps(texts), "utf-8")
        # -P: the folder of the script holds modules of this example.
        arguments = map(str, (script, folder, question, answer, n_tokens))
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise ExportError(f"{folder}: transformers alone must load it, got: {last}")
        found: NDArray[Any] = np.load(answer)
    return found
