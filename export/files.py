"""Names of the files in an export folder, and which of them make up a format."""

from collections.abc import Mapping

from glora_deploy.artifact import ADAPTER, MANIFEST

WEIGHTS_FILE = "model.safetensors"
"""The merged weights; the initializers of ``MODEL_FILE`` lie in it."""
CONFIG_FILE = "config.json"
"""timm's configuration of the merged network."""
MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
INT8_REPORT_FILE = "int8.json"
PLAN_FILE = "model.plan"
SIDECAR_FILE = "plan.json"
"""What a plan was built from and where it runs."""
DELTA_FOLDER = "delta"
"""The delta in the precision of the export."""

FILES: Mapping[str, tuple[str, ...]] = {
    "merged": (CONFIG_FILE, WEIGHTS_FILE),
    "delta": (f"{DELTA_FOLDER}/{ADAPTER}", f"{DELTA_FOLDER}/{MANIFEST}"),
    "onnx": (MODEL_FILE,),
    "int8": (INT8_FILE, INT8_REPORT_FILE),
    "trt": (PLAN_FILE, SIDECAR_FILE),
}
"""The files of each format; what a graph reads its weights from belongs to ``merged``."""
