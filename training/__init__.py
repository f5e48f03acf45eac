"""Supernet training and evolutionary search: images in, one delta per task out.

``pipeline`` is one task from images to stored deltas; ``methods`` the ways to train it.

=====================  ==========================================================================
``cli``, ``options``   the command line, and what its options mean; ``api`` the same from Python
``config``             what a run is asked to do; ``chosen_layers`` which layers that means
``supernet``           what is trained; ``trainer`` trains it as ``schedule`` says
``search``             the best subnet of a supernet; ``evaluate`` tells how good one is
``split``              what training needs of a split; ``pixels`` images as one; ``device`` where
                       they are computed with
``run_folder``         what an unfinished run keeps; ``run_lock``, ``checkpoint`` its parts
``record``             what the store keeps of a training; ``run_settings`` what repeats it,
                       which ``config_file`` reads again
``demo_backbone``      how the packaged backbone was made
=====================  ==========================================================================

``train`` and ``Outcome`` can be imported from here; nothing is loaded before they are.
"""

from typing import TYPE_CHECKING

__all__ = ["Outcome", "train"]

if TYPE_CHECKING:
    from .api import train
    from .pipeline import Outcome
else:

    def __getattr__(name):
        if name == "train":
            from .api import train

            return train
        if name == "Outcome":
            from .pipeline import Outcome

            return Outcome
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
