"""Supernet training and evolutionary search: images in, one delta per task out.

``pipeline`` is one task from images to stored deltas; ``methods`` the ways to train it.

=====================  ==========================================================================
``cli``, ``options``   the command line, and what its options mean
``config``             what a run is asked to do; ``chosen_layers`` which layers that means
``supernet``           what is trained; ``trainer`` trains it as ``schedule`` says
``search``             the best subnet of a supernet; ``evaluate`` tells how good one is
``pixels``, ``device`` the images as tensors, and where they are computed with
``run_folder``         what an unfinished run keeps; ``run_lock``, ``checkpoint`` its parts
``record``             what the store keeps of a training
``demo_backbone``      how the packaged backbone was made
=====================  ==========================================================================
"""
