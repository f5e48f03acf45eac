"""What operators see: counts, traces, a line for each request.

=====================  ==========================================================================
``metrics``            for Prometheus; a task has a series of its own only up to a bound
``tracing``            spans of a request, sent by OpenTelemetry when asked for
``access_log``         one line for each request, as text or JSON
=====================  ==========================================================================
"""
