"""What a long-lived process asks of the operating system and of its libraries."""

from __future__ import annotations

import resource

from PIL import Image

_PILLOW_BLOCK_BYTES = 64 << 20


def allow_open_files(count: int) -> None:
    """Let this process have so many files and sockets open, as far as the system lets it.

    Many systems begin with 1,024, and a process that has used them up cannot read its store.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_memory_of_large_images() -> None:
    """Let Pillow give the memory of a large image back to the system.

    It takes blocks of 16 MB, which the allocator keeps for later ones: after a few images of 50
    million pixels a process would hold a gigabyte for ever. Blocks from 32 MiB go back at once.
    """
    Image.core.set_block_size(_PILLOW_BLOCK_BYTES)  # type: ignore[attr-defined]
