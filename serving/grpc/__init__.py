"""The inference protocol over gRPC: ``inference.GRPCInferenceService``, reflection and health.

=============  ===================================================================================
``server``     a server at a port of its own, and its orderly leave
``gate``       every call passes here: its record, its token, the status it ends with
``servicer``   the calls themselves, over the engine
``messages``   protobuf's messages <-> calls and replies of ``serving.protocol``
``errors``     what went wrong -> a status code
``health``     the standard health service, as the engine is
=============  ===================================================================================

The message classes and the servicer's base are those that ``tritonclient`` carries.
"""
