"""TensorRT plans on a GPU: ``model.plan`` and ``plan.json`` in, logits out.

======================  ========================================================================
``plan_json``           what a plan is; imports no TensorRT
``library``             TensorRT or TensorRT-RTX: the one module that imports either
``engine``              a plan in GPU memory: run, time, refit
======================  ========================================================================
"""
