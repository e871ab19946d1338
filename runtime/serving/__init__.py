"""An artefact on Ray Serve: HTTP in front of ``compactor.runtime.load``.

======================  ==========================================================================
``settings``            limits, replicas, threads: all that one may choose
``protocol``            the Open Inference Protocol's JSON, and the plain route's
``lanes``               texts of like length wait together, and run together
``application``         the deployment and its routes; ``build`` is what a cluster's config names
``telemetry``           metrics for Prometheus, log lines without texts
``launching``           start it on this machine, stop it without losing a request; a cluster's config
======================  ==========================================================================

Needs the extra ``ray``. The server itself, its queues and replicas, are Ray Serve's.
"""
