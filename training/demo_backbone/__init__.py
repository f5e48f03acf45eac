"""How the packaged demo backbone was made; nothing else of training needs it.

``pretrain_demo`` trains it on the images of ``pretrain_images``; ``ridge_probe`` tells how good its
features are.
"""
