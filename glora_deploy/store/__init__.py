"""Artifacts on disk: what one is, all of them in one folder, written so that no crash harms them.

======================  ========================================================================
``manifest``            manifest.json as typed fields; ``manifest_fields`` its parts and rules
``artifact``            one version of one task: manifest and delta, written and read
``reader``              what lies where in a store; ``store`` the half that writes
``audit``               every file held against what is stated about it
``atomic_files``        writing so that a crash leaves the old state or the new
``disk_space``          a full disk said in one line; ``folder_lock`` folders held against others
``mapped_safetensors``  arrays mapped straight onto a safetensors file
``fingerprint``         one sha256 for a set of named tensors
``default_place``       which store is meant where none is named
``companions``          files beside a version; ``run_settings`` one of them
``backbone_config``     how the network around a stored backbone is built
``export_record``       export.json: what an export folder holds and what it came from
``graph_key``           which cached ONNX graph belongs to a network
``prune``               what no version needs any more, removed
``redact``              a manifest that names no place on this machine
======================  ========================================================================

Nothing here imports torch.
"""
