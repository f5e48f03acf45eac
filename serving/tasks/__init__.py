"""Every task of a store, answering from one backbone in memory.

=====================  ==========================================================================
``contract``           what goes in and comes out: the protocols stand on this alone
``engine``             ties the rest together: ``StoreEngine``
``settings``           how it runs
``live_store``         which versions there are, which answer, and how that changes
``versions``           one of them; ``proof`` whether the store's parity record allows it
``networks``           which network a version runs on
``task_weights``       weights by version: leased, merged where they are not in memory
``merge_task``         a delta folded into a network's slots
``weights_cache``      merged weights within a budget of bytes
``scheduler``          queues, batches, and whose turn it is
``run_batch``          one batch computed
``statistics``         counts by version
=====================  ==========================================================================
"""
