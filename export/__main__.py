"""``python -m glora_deploy.export``."""

from .cli import main

main()
