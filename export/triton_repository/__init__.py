"""A model repository for Triton Inference Server: exports in, folders that Triton loads out.

``write`` puts the tasks in place, ``config_pbtxt`` says how Triton shall serve one, and
``model_folder`` finds what a folder holds that is not of the model.
"""
