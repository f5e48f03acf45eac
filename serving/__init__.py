"""Tasks answer for images: one in process, or all of a store.

=====================  ==========================================================================
``predictor``          one task of a store, or one exported folder: images in, labels out
``exported_model``     where its ONNX model lies, and whether to trust it
``onnx_session``       the one module of this side that runs ONNX Runtime
``image_input``        what a caller may give as an image
``tasks/``             every task of a store from one backbone in memory
``engines/``           a backbone's network that runs with one task's weights after another's
``protocol/``          the inference protocol, whatever it comes over
``http/``, ``grpc/``   what it comes over
``web/``               the page for people
``telemetry/``         what operators see
``cli``, ``run``       the program: its options; a server from its first bind to its last answer
``service``            what both transports use: the engine, and threads that may block
``settings``           of a server; ``tasks.settings`` has those of its engine
``rate``               how often one client may ask
``listening``          a socket, taken before anything slow is done
``resources``          what is asked of the operating system
``announcement``       what is printed once it answers
``errors``             what a request can meet
=====================  ==========================================================================

``Predictor`` and ``Prediction`` can be imported from here; nothing is loaded before they are. No
torch is, ever.
"""

from typing import TYPE_CHECKING

__all__ = ["Prediction", "Predictor"]

if TYPE_CHECKING:
    from .predictor import Prediction, Predictor
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import predictor

        return getattr(predictor, name)
