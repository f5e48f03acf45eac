"""``python -m glora_deploy``."""

from .cli import main

main()
