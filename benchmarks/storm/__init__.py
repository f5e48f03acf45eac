"""A storm around a server: many clients, a store that changes, faults, and a ledger of answers.

``ledger`` knows what may be answered and judges what was; ``tasks`` makes the store and its new
versions; ``clients`` ask and are answered; ``intruders`` misbehave; ``changes`` alter what is
served; ``watch`` samples the process; ``ours`` and ``triton`` start the servers. ``soak.py`` runs
it all.
"""
