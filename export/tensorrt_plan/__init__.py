"""TensorRT plans: an ONNX model and its weights in, ``model.plan`` and ``plan.json`` out.

======================  ========================================================================
``plan_json``           what a plan was asked to be and what it became; imports no TensorRT
``build``               the build; ``network`` the graph as TensorRT parses it
``library``             TensorRT or TensorRT-RTX: the one module that imports either
``engine``              a plan in GPU memory: run, time, refit
======================  ========================================================================
"""
