"""Every task of a store, answering from one backbone in memory.

=====================  ==========================================================================
``contract``           what goes in and comes out: the protocols stand on this alone
=====================  ==========================================================================
"""
