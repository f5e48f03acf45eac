"""GLoRA on the layers of a BERT that classifies texts, with the parts that train on images.

Read in the order of a run:

``docstrings``       a task: which package a docstring was written for
``token_split``      a split of it as the trainer takes it
``network``          a BERT of transformers with a new classifier
``train_glora``      supernet, search, chosen subnet; and the classifier alone, to compare with
``merged_folder``    what is written: a folder of transformers' own, with an ONNX graph
``vanilla_answers``  what a user of that folder runs, where this project is not installed
``proof``            every stage against the float64 merged network
"""
