"""The method: which forms the supports of a layer take, and frozen layers that carry them.

======================  ========================================================================
``forms``               which form each support takes; layer shapes, subnets, the search space
``support_value``       what a support's tensors stand for: their value, and A and B as factors
``layer``               one frozen layer with all its supports
``supernet_layers``     a backbone turned into a supernet, and its trained supports read back
======================  ========================================================================
"""
