"""``python -m glora_deploy.export``."""

from .cli.commands import main

main()
