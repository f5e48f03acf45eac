"""The server's HTTP side, as an ASGI application over any ``TaskEngine``.

=====================  ==========================================================================
``app``                the application: routes, middleware, error handlers
``inference``          routes of the protocol that infer, and that say what is served
``repository``         index, load, unload; pins
``predict``            encoded images in, labels out: ``/v1``
``page``               the page for people, status
``binary_tensors``     a body of the protocol <-> tensors
``body``               a request's bytes, counted and decompressed within limits
``errors``             what went wrong -> status: the one place
``gate``               request ids, tokens, rate, the log and the headers of every answer
=====================  ==========================================================================
"""
