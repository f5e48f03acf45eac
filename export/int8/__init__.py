"""int8 for ONNX Runtime on CPUs: an ONNX model in, a smaller and faster one and its cost out.

``quantize`` calibrates and writes it, ``saturation`` tells whether any CPU could get it wrong, and
``report`` measures it beside the float model.
"""
