"""Does what was written compute what was trained? Stages and inputs in, a report out.

``stages`` are the networks of one export in order, ``inputs`` what they are fed, ``batch_sizes`` in
which portions; ``run`` runs them against the float64 reference.
"""
