"""From a stored delta to proven files: merged weights, ONNX, TensorRT, Triton, the Hub.

``pipeline`` is one export from end to end. It merges into a ``timm_folder``, calls the wings
``onnx_model``, ``int8`` and ``tensorrt_plan`` for their files, lets ``parity_check`` compare every
stage, and only then puts the folder into the store.

=====================  ==========================================================================
``api``                one export from Python
``stored_backbone``    the backbone that a delta needs, found or put into the store
``reuse_previous``     which files of the export before stay; ``require_format`` judges them
``out_folder``         a folder of the user's that holds one export, replaced whole
``triton_repository``  exports of several tasks as Triton loads them
``hub``, ``importers`` exports to the Hub and deltas from elsewhere
``cli``                the command line
=====================  ==========================================================================

``export`` and ``Exported`` can be imported from here; nothing is loaded before they are.
"""

from typing import TYPE_CHECKING

__all__ = ["Exported", "export"]

if TYPE_CHECKING:
    from .api import export
    from .pipeline import Exported
else:

    def __getattr__(name):
        if name == "export":
            from .api import export

            return export
        if name == "Exported":
            from .pipeline import Exported

            return Exported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
