"""Names of the files in an export folder, and which of them make up a format."""

from glora_deploy.export_record import (
    CONFIG_FILE,
    DELTA_FOLDER,
    FILES,
    INT8_FILE,
    INT8_REPORT_FILE,
    MODEL_FILE,
    PLAN_FILE,
    SIDECAR_FILE,
    WEIGHTS_FILE,
)

__all__ = [
    "CONFIG_FILE",
    "DELTA_FOLDER",
    "FILES",
    "INT8_FILE",
    "INT8_REPORT_FILE",
    "MODEL_FILE",
    "PLAN_FILE",
    "SIDECAR_FILE",
    "WEIGHTS_FILE",
]
