"""ONNX models: a network in, a graph whose weights lie beside or inside it out.

======================  ========================================================================
``trace``               a network to a graph without weights; ``graph_cache`` keeps such graphs
``write``               weights joined to a graph
``half_precision``      a graph in fp16 or bf16; ``fp16_overflow`` what must stay in fp32
``with_preprocessing``  ``preprocessing_graph`` before a network and a softmax behind it
``ort_session``         the one module that imports ONNX Runtime
======================  ========================================================================
"""
