"""GLoRA fine-tunes of vision backbones, from training to production: one backbone, many tasks.

The core, which the sides ``glora_deploy.training``, ``.export`` and ``.serving`` import:

====================  ===========================================================================
``glora``             the method: forms of supports, layers that carry them, the search space
``merge``             frozen weights and supports in, vanilla weights out
``store``             artifacts on disk; ``packs`` tasks in one file, to share them
``backbones``         the frozen networks, found, loaded and fingerprinted
``data``              images in, labelled splits and network inputs out
``evaluation``        how good a version is on labelled images, and versions side by side
``parity``            do two stages compute the same; ``machine`` where that was measured
``tensorrt_runtime``  TensorRT plans on a GPU
``commands``          the program ``glora``, a file for each command; ``program``, ``options``,
                      ``console``, ``plain_progress`` and ``quiet`` what every program shares
``interrupt``         Ctrl-C while a program is still loading
``errors``            what can go wrong in the world, as one tree
``precision``         fp32, fp16, bf16
``record_file``       JSON files read as typed records; ``strict_record`` what those obey
``file_kind``         what a file is, by its content; ``wording`` names in messages
====================  ===========================================================================

``__version__`` is that of the installed distribution, and is read when it is asked for: this module
imports nothing, so that the parts without torch stay usable without it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("glora-deploy")
