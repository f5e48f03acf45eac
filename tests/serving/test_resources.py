"""Limits of the process, set in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FILES = """
import resource
from glora_deploy.serving.resources import allow_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
allow_open_files(128)
allow_open_files(100)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 96))
allow_open_files(128)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
_IMAGES = """
import io
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from glora_deploy.data.image_file import load_image
from glora_deploy.serving.resources import free_memory_of_large_images

def held():
    return int(open('/proc/self/statm').read().split()[1]) * 4 // 1024

free_memory_of_large_images()
file = io.BytesIO()
Image.new('RGB', (4000, 4000)).save(file, 'JPEG')
with ThreadPoolExecutor(2) as pool:
    before = held()
    asked = [pool.submit(lambda: load_image(file.getvalue()).resize((8, 8))) for _ in range(8)]
    kept = [each.result() for each in asked]
    print(held() - before)
"""


def printed(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_as_many_files_as_wanted_and_allowed() -> None:
    assert printed(_FILES) == [128, 96]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_no_image_stays_in_memory() -> None:
    (mebibytes,) = printed(_IMAGES)  # an image is 46 of them
    assert mebibytes < 23
