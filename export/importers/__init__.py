"""Fine-tunes made elsewhere: a PEFT adapter or an authors' checkpoint in, a delta out.

======================  ========================================================================
``peft``                LoRA, DoRA and GLoRA adapters of the PEFT library: ``peft_config`` and
                        ``peft_names`` read them, ``peft_supports`` makes them A to E
``authors_checkpoint``  supernets of the authors' GLoRA release
``assemble``            what both end in: supports, classifier, artifact
``transformers_names``  where a transformers network's layers lie in timm's
``detect_lycoris``      files that look like GLoRA's and are LyCORIS'
======================  ========================================================================
"""
