"""The frozen networks: a timm name or a file of weights in, a fingerprinted backbone out.

======================  ========================================================================
``load``                finds, loads and names a backbone
``checkpoint_file``     its tensors in what trainers save; ``packaged`` those in ``weights/``
``input_size``          sizes of a network's input, as people write them
======================  ========================================================================
"""
