"""The Open Inference Protocol as both of its transports see it: neither HTTP nor gRPC is in here.

=====================  ==========================================================================
``datatypes``          FP32, BYTES, ...: how large they are and which arrays hold them
``tensors``            named tensors of a call and of its answer; from bytes, from listed values
``infer``              a call of one model -> images; an answer of the engine -> outputs
``images``             encoded images -> what a backbone takes
``classification``     logits -> ``"0.900000:3:cat"``
``version_names``      ``v3`` in the store is ``3`` to a client
``model_info``         metadata, configuration, repository index and statistics as plain records
``limits``             how large and how long a request may be
``tokens``             who may ask, and who may change what is served
=====================  ==========================================================================

Everything here is a function of its arguments and the engine; nothing is kept.
"""
