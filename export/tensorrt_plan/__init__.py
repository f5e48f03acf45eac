"""TensorRT plans: an ONNX model and its weights in, ``model.plan`` and ``plan.json`` out.

======================  ========================================================================
``config``              what a plan is asked to be
``build``               the build; ``network`` the graph as TensorRT parses it
======================  ========================================================================

Running a plan is ``glora_deploy.tensorrt_runtime``.
"""
