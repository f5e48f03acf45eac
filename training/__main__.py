"""``python -m glora_deploy.training``."""

from .cli import main

main()
