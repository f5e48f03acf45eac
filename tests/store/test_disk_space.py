from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from glora_deploy.errors import ExportError, GloraDeployError, StoreError
from glora_deploy.store.disk_space import space_for


@pytest.mark.parametrize("kind", [StoreError, ExportError])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_one_line(kind: type[GloraDeployError], code: int) -> None:
    with pytest.raises(kind) as caught, space_for("pets/v1", Path("here"), "store", kind):
        raise OSError(code, os.strerror(code), "here/pets")
    assert str(caught.value) == (
        f"here: no space left to write pets/v1 ({os.strerror(code)}); the store is as it was. "
        "Free some space and try again."
    )


def test_any_other_error_of_the_system_passes() -> None:
    with (
        pytest.raises(PermissionError, match="not yours"),
        space_for("pets/v1", Path("here"), "store", StoreError),
    ):
        raise PermissionError(errno.EACCES, "not yours")
