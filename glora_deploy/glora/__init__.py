"""The method: which forms the supports of a layer take, and frozen layers that carry them.

======================  ========================================================================
``forms``               which form each support takes; layer shapes, subnets, the search space
``layer``               one frozen layer with all its supports
``supernet_layers``     a backbone turned into a supernet, and its trained supports read back
======================  ========================================================================
"""
