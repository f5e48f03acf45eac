"""What the tests of imports share."""

from __future__ import annotations

import pytest

from glora_deploy.backbones.load import Backbone
from stored_tasks import make_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()
