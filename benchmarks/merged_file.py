"""From a stored delta to a verified merged file: seconds and peak memory, beside PEFT.

Everything printed comes from this one run; each way runs in a fresh process, several times, taking
turns::

    python benchmarks/merged_file.py --rounds 3

Ours reads and verifies the delta, merges all 48 linear layers of a ViT-B/16 (A and B low-rank,
rank 4) straight into the new file, flushes it to the disk and takes its sha256. PEFT loads the
same backbone, attaches a LoRA of rank 4 to the same layers, merges, and saves with safetensors.
Weights are random: neither depends on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import median

PREPARE = """
# A store with one task, "bench": random supports on every linear layer of a random ViT.
import numpy as np, sys, torch
sys.path.insert(0, "tests")
from pathlib import Path
from stored_tasks import make_backbone
from glora_deploy.glora.supernet_layers import find_layers
from glora_deploy.store.manifest import *
from glora_deploy.glora.forms import LayerForms
from glora_deploy.store.manifest_fields import *
from glora_deploy.store.store import ArtifactStore
root = Path(sys.argv[1])
backbone = make_backbone(sys.argv[2], input_size=224)
layers = find_layers(backbone.build(10), exclude=backbone.classifier)
paths = LayerForms.parse("A=lora:4 B=lora:4 C=lora:4 D=vector E=vector")
draft = ManifestDraft(
    backbone=backbone.record(),
    preprocessing=backbone.preprocessing_record(),
    labels=tuple(str(i) for i in range(10)),
    layers={n: LayerRecord.of(s, paths) for n, s in layers.items()},
    training=TrainingRecord(method="glora", schedule=None, data=None, splits_sha256=None, seed=None,
        epochs=None, seconds=None, device=None, versions={}, val_accuracy=None,
        test_accuracy=None, settings={}))
rng = np.random.default_rng(0)
width = backbone.build(10).head.in_features
shapes = {**draft.support_shapes(), "head.weight": (10, width), "head.bias": (10,)}
tensors = {n: 0.01 * rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
store = ArtifactStore.create(root)
store.put_backbone(backbone.fingerprint, {n: t.numpy() for n, t in backbone.tensors.items()},
                   backbone.config())
print(store.put("bench", tensors, draft).path)
"""

OURS = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
from glora_deploy.store.atomic_files import flush
from glora_deploy.merge.to_file import write_merged
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.store.store import ArtifactStore
imported = time.perf_counter()
store = ArtifactStore.open(sys.argv[1])
artifact = store.get("bench")
backbone = store.backbone_path(artifact.manifest.backbone.fingerprint) / "model.safetensors"
out = Path(sys.argv[1]) / "out.safetensors"
write_merged(out, backbone, artifact.tensors(), artifact.manifest.shapes(),
             precision=sys.argv[2], metadata={"format": "pt"})
flush(out)
record = FileRecord.of_file(out)
seconds = time.perf_counter() - imported
out.unlink()
"""

PEFT = """
import resource, sys, time
start = time.perf_counter()
import os, timm, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from glora_deploy.store.manifest_fields import FileRecord
imported = time.perf_counter()
(weights,) = Path(sys.argv[1]).glob(".backbones/*/model.safetensors")
model = timm.create_model("vit_base_patch16_224", num_classes=10)
model.load_state_dict(load_file(weights), strict=False)
config = LoraConfig(r=4, target_modules=["qkv", "proj", "fc1", "fc2"])
merged = get_peft_model(model, config).merge_and_unload()
out = Path(sys.argv[1]) / "out.safetensors"
save_file(merged.state_dict(), out)
with out.open("rb") as file:
    os.fsync(file.fileno())
record = FileRecord.of_file(out)
seconds = time.perf_counter() - imported
out.unlink()
"""

REPORT = """
import json
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "import_seconds": imported - start, "peak_bytes": peak,
                  "file_bytes": record.size_bytes}))
"""


def run(code: str, *arguments: str) -> str:
    """The last line that a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Parse, prepare a store, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taking turns")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as root:
        run(PREPARE, root, "vit_base_patch16_224")
        ways = {
            "this project, fp32": (OURS + REPORT, "fp32"),
            "this project, fp16": (OURS + REPORT, "fp16"),
            "PEFT merge_and_unload, fp32": (PEFT + REPORT, "fp32"),
        }
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (code, precision) in ways.items():
                found[way].append(json.loads(run(code, root, precision)))
    print(f"{'ViT-B/16, median of ' + str(rounds):<30}  seconds  imports  peak/file  file MB")
    for way, runs in found.items():
        seconds, imports, peak, size = (
            median(one[key] for one in runs)
            for key in ("seconds", "import_seconds", "peak_bytes", "file_bytes")
        )
        print(f"{way:<30} {seconds:8.2f} {imports:8.2f} {peak / size:10.2f} {size / 1e6:8.1f}")


if __name__ == "__main__":
    main()
