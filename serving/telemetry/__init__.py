"""What operators see: counts, traces, a line for each request.

=====================  ==========================================================================
``request_record``     what is known of a request once it has ended; both transports write it
``telemetry``          hands each record to the three below
``metrics``            for Prometheus; a task has series of its own only up to a bound
``tracing``            spans of a request, sent by OpenTelemetry when asked for
``access_log``         one line for each request, as text or JSON
=====================  ==========================================================================
"""
