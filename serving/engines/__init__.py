"""A backbone's network that runs with the weights of one task after another.

=====================  ==========================================================================
``network``            what every runtime offers: room for merged weights, and a run with them
``stored_graph``       the ONNX graph of a backbone, found in the store without torch
``weight_inputs``      that graph with the adapted weights as inputs
``onnx_runtime``       such a graph on ONNX Runtime
``torch_network``      the network in PyTorch, on the CPU
``torch_gpu``          the same on a GPU, where tasks are merged too
``own_export``         a file of a version's own export, where weights cannot be exchanged
``plan``               the network as a TensorRT plan
``mixed``              a graph on ONNX Runtime whose batches hold images of many tasks
``mixed_graph``        how that graph is made
=====================  ==========================================================================

Only the two of PyTorch import torch, and ``plan`` when it loads one. Nothing here knows tasks,
versions or queues.
"""
