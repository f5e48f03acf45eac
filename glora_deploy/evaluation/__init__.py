"""How good is it: a version's answers to labelled images, and versions side by side.

A version of a store, or any classifier such as ``glora_deploy.serving.Predictor``, and the text
of a data set go in; typed records come out. Nothing is printed, and only ``delta_network`` needs
torch.

=====================  ==========================================================================
``evaluate_version``   one version, or any classifier, on labelled images: ``Evaluation``
``compare_versions``   two or more of them on the same images: ``Comparison``
``labelled_images``    the images, their classes matched by name with those of a network
``predictions``        logits for every image, computed batch by batch
``delta_network``      a delta merged into its backbone with torch, to answer for images
``metrics``            accuracy, classes one by one, confusions, calibration, from logits
``mcnemar``            which of two is better on the same images; ``intervals`` how sure that is
``choices``            what one can choose from
``differences``        in what versions differ: settings, data, backbone, forms by type of layer
=====================  ==========================================================================

``evaluate``, ``evaluate_on``, ``load_images`` and ``compare`` can be imported from here, and the
records that they return; nothing is loaded before they are.
"""

from typing import TYPE_CHECKING

__all__ = [
    "Comparison",
    "Evaluation",
    "LabelledImages",
    "McNemar",
    "Metrics",
    "Predictions",
    "compare",
    "evaluate",
    "evaluate_on",
    "load_images",
]

if TYPE_CHECKING:
    from .compare_versions import Comparison, compare
    from .evaluate_version import Evaluation, evaluate, evaluate_on
    from .labelled_images import LabelledImages, load_images
    from .mcnemar import McNemar
    from .metrics import Metrics
    from .predictions import Predictions
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import (
            compare_versions,
            evaluate_version,
            labelled_images,
            mcnemar,
            metrics,
            predictions,
        )

        return {
            "Comparison": compare_versions.Comparison,
            "Evaluation": evaluate_version.Evaluation,
            "LabelledImages": labelled_images.LabelledImages,
            "McNemar": mcnemar.McNemar,
            "Metrics": metrics.Metrics,
            "Predictions": predictions.Predictions,
            "compare": compare_versions.compare,
            "evaluate": evaluate_version.evaluate,
            "evaluate_on": evaluate_version.evaluate_on,
            "load_images": labelled_images.load_images,
        }[name]
