"""GLoRA fine-tunes of vision backbones, from training to production: one backbone, many tasks.

The core, which the sides ``glora_deploy.training``, ``.export`` and ``.serving`` import:

===================  ============================================================================
``paths``            which form each support takes; subnets and the space they are drawn from
``layer, inject``    frozen layers with supports; a backbone turned into a supernet and back
``merge``            the merge as plain functions; ``fused_merge`` the same in one pass over memory
``merged_file``      backbone and delta in, the merged network's safetensors file out
``manifest``         what one artifact is; ``artifact`` one version on disk; ``store`` all of them
``pack, unpack``     tasks of a store in one file; ``prune`` what no version uses any more
``backbone``         the frozen timm model; ``preprocess`` images in, its inputs out
``data``             a task's images: ``data_folder``, ``data_lists``, ``demo_data``; ``image_file``
                     reads one, ``data_check`` finds what is wrong with them all
``checkpoint_file``  its weights as trainers save them; ``file_kind`` what a file is by its content
``parity``           do two stages compute the same
``redact``           what others may see of a manifest
===================  ============================================================================

This module imports nothing, so that the parts without torch stay usable without it.
"""
