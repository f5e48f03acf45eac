"""The Hugging Face Hub: a proven export out in one commit, a verified delta back in.

``push_pull`` does both, ``model_card`` writes the page, ``client`` is the Hub's own with bounded
patience.
"""
