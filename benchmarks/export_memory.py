"""Seconds and peak memory of whole export commands, parity included, beside a script by hand.

Everything printed comes from this one run; each way runs in a fresh process, one after another::

    python benchmarks/export_memory.py --model vit_base_patch16_224

Ours is ``python -m glora_deploy.export``: merge, write, compare every stage with the float64 merge
on the same inputs, record checksums. The script by hand merges a LoRA with PEFT, calls
``torch.onnx.export`` and compares ONNX Runtime with torch once, in float32. What importing torch
and timm takes, which both pay, stands in a line of its own. Weights are random: neither time nor
memory depends on them. Linux only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from merged_file import PREPARE, run

IMPORTS = "import timm, torch"

BY_HAND = """
import sys
import numpy as np, onnxruntime, timm, torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
root, name, n_images = sys.argv[1], sys.argv[2], int(sys.argv[3])
from pathlib import Path
(weights,) = Path(root).glob(".backbones/*/model.safetensors")
model = timm.create_model(name, num_classes=10).eval()
model.load_state_dict(load_file(weights), strict=False)
config = LoraConfig(r=4, target_modules=["qkv", "proj", "fc1", "fc2"])
model = get_peft_model(model, config).merge_and_unload().eval()
out = Path(root) / "by_hand"
out.mkdir()
save_file(model.state_dict(), out / "model.safetensors")
torch.onnx.export(model, (torch.zeros(2, 3, 224, 224),), out / "model.onnx", dynamo=True,
                  verbose=False, input_names=["image"], output_names=["logits"],
                  dynamic_shapes=({0: torch.export.Dim("batch")},))
images = torch.randn(n_images, 3, 224, 224)
session = onnxruntime.InferenceSession(out / "model.onnx")
with torch.inference_mode():
    expected = model(images).numpy()
(found,) = session.run(None, {"image": images.numpy()})
assert np.allclose(found, expected, atol=1e-3)
"""


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds until a command ends, and the most memory that was resident in its process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            # The kernel keeps the maximum, so a slow look misses no more than the last moment.
            found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
            peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    messages = process.stderr.read().decode()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command[:8])} ended with {process.returncode}:\n{messages[-2000:]}")
    return time.perf_counter() - start, peak


def main() -> None:
    """Parse, prepare a store, run every way, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224", help="timm name of a ViT")
    parser.add_argument("--images", type=int, default=4, help="ordinary images to compare on")
    parser.add_argument("--fmt", action="append", help="only these formats: merged, onnx, trt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        run(PREPARE, root, options.model)
        (weights,) = Path(root).glob(".backbones/*/model.safetensors")
        size = weights.stat().st_size
        exports = Path(root) / "bench" / "v1" / "exports"
        print(f"{options.model}: {size / 1e6:.0f} MB of float32 weights, {options.images} images")
        print(f"{'':<44}{'s':>8}{'peak MB':>10}{'/ weights':>11}", flush=True)

        def report(name: str, command: list[str]) -> None:
            seconds, peak = measure([sys.executable, "-W", "ignore", *command])
            print(f"{name:<44}{seconds:>8.1f}{peak / 1e6:>10.0f}{peak / size:>11.2f}", flush=True)

        report("importing torch and timm", ["-c", IMPORTS])
        for fmt in options.fmt or ("merged", "onnx", "trt"):
            for precision in ("fp32", "fp16"):
                shutil.rmtree(exports, ignore_errors=True)
                command = ["-m", "glora_deploy.export", "--task", "bench", "--store", root]
                command += ["--fmt", fmt, "--precision", precision]
                command += ["--images", str(options.images), "--quiet"]
                first = not (Path(root) / ".skeletons").exists() and fmt != "merged"
                if first:
                    report(f"{fmt} {precision}, first of its architecture", command)
                    shutil.rmtree(exports)
                report(f"{fmt} {precision}", command)
        n_images = str(options.images)
        report("PEFT and torch.onnx.export by hand", ["-c", BY_HAND, root, options.model, n_images])


if __name__ == "__main__":
    main()
