from __future__ import annotations

import pytest

from glora_deploy.backbones.input_size import MAX_SIDE, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("224", (224, 224)),
        ("224x320", (224, 320)),
        ("1x4096", (1, MAX_SIDE)),
        ("0032", (32, 32)),
    ],
)
def test_a_size_is_a_side_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "224x", "x224", "224X320", "224 x 320", "-1", "1.5", "1x2x3", "٣٢", "9" * 10]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an input size must be pixels such as 224, or HEIGHTx"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0x9", "9x0", "4097", "20000x9"])
def test_a_side_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="each side of the input must have 1 to 4096 pixels, got"):
        parse_size(text)
