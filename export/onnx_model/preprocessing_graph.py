"""The store's preprocessing as ONNX operators: decoded pixels in, a network's input out.

Pillow resizes 8-bit pixels one axis after the other, each time with weights of 22 bits, and rounds
to 8 bits in between (``libImaging/Resample.c``). ONNX's ``Resize`` does neither, and has no
Lanczos. So the graph computes Pillow's weights from the size of the image and multiplies by them:
the pixels are Pillow's, to the bit, where doubles are doubles.

The matrices hold a row for each pixel of the crop alone. A weight is multiplied in two parts of 11
bits, whose products with 8-bit pixels add up exactly in float32, and in TF32 too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper, parser

from glora_deploy.data.preprocess import Preprocessing

PIXELS, IMAGE = "pixels", "image"
LEVELS = "preprocess_levels"
"""The cropped pixels, before they are normalised: ``(n, 3, h, w)``, whole numbers in float32."""

PREFIX = "preprocess_"
_WEIGHT_BITS = 22
_PART_BITS = 11

_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""How far a filter reaches, in pixels of the larger of its two grids."""

_FILTERS = {
    "box": """
        from_half = Greater(t, minus_half)
        to_half = LessOrEqual(t, half)
        in_box = And(from_half, to_half)
        f = Where(in_box, one, zero)
    """,
    "bilinear": """
        d = Abs(t)
        sloping = Sub(one, d)
        f = Max(sloping, zero)
    """,
    "hamming": """
        d = Abs(t)
        angle = Mul(d, pi)
        sine = Sin(angle)
        sinc = Div(sine, angle)
        cosine = Cos(angle)
        swing = Mul(cosine, hamming_swing)
        window = Add(swing, hamming_mean)
        windowed = Mul(sinc, window)
        at_zero = Equal(d, zero)
        filled = Where(at_zero, one, windowed)
        near = Less(d, one)
        f = Where(near, filled, zero)
    """,
    "bicubic": """
        d = Abs(t)
        n1 = Mul(d, cubic_n1)
        n2 = Sub(n1, cubic_n2)
        n3 = Mul(n2, d)
        n4 = Mul(n3, d)
        near = Add(n4, one)
        f1 = Sub(d, cubic_f1)
        f2 = Mul(f1, d)
        f3 = Add(f2, cubic_f2)
        f4 = Mul(f3, d)
        f5 = Sub(f4, cubic_f3)
        far = Mul(f5, cubic_a)
        is_far = Less(d, two)
        far_or_none = Where(is_far, far, zero)
        is_near = Less(d, one)
        f = Where(is_near, near, far_or_none)
    """,
    "lanczos": """
        angle = Mul(t, pi)
        sine = Sin(angle)
        sinc = Div(sine, angle)
        wide_angle = Div(angle, three)
        wide_sine = Sin(wide_angle)
        wide_sinc = Div(wide_sine, wide_angle)
        product = Mul(sinc, wide_sinc)
        at_zero = Equal(t, zero)
        filled = Where(at_zero, one, product)
        d = Abs(t)
        near = Less(d, three)
        f = Where(near, filled, zero)
    """,
}
"""Weight ``f`` of a source pixel at the signed distance ``t``: the functions of ``Resample.c``."""

_NUMBERS: Mapping[str, float] = {
    "zero": 0.0,
    "half": 0.5,
    "minus_half": -0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "white": 255.0,
    "pi": math.pi,
    "hamming_mean": float(np.float32(0.54)),  # float constants there too
    "hamming_swing": float(np.float32(0.46)),
    # (a + 2) d^3 - (a + 3) d^2 + 1 and a (d^3 - 5 d^2 + 8 d - 4), with Pillow's a of -0.5.
    "cubic_a": -0.5,
    "cubic_n1": 1.5,
    "cubic_n2": 2.5,
    "cubic_f1": 5.0,
    "cubic_f2": 8.0,
    "cubic_f3": 4.0,
    "part_scale": 2.0**_PART_BITS,
    "weight_scale": 2.0**_WEIGHT_BITS,
}
_WHOLE: Mapping[str, int] = {"int_zero": 0, "int_one": 1, "int_two": 2}
_SHARED = {*_NUMBERS, *_WHOLE, "reach", "axis_zero", "axis_one", "common_ratio"}
"""Names that mean the same on both axes."""

_PLACE = """
    missing_or_less = Sub(size, resized)
    missing = Max(missing_or_less, int_zero)
    before = Div(missing, int_two)
    padded = Add(resized, missing)
    spare = Sub(padded, size)
    spare_double = Cast<to=11>(spare)
    spare_half = Div(spare_double, two)
    cut_double = Round(spare_half)
    cut = Cast<to=7>(cut_double)
    shift = Sub(cut, before)
    steps = Range(int_zero, size, int_one)
    places = Add(steps, shift)
    not_before = GreaterOrEqual(places, int_zero)
    not_after = Less(places, resized)
    inside = And(not_before, not_after)
    from_first = Max(places, int_zero)
    last = Sub(resized, int_one)
    kept = Min(from_first, last)
    old_double = Cast<to=11>(old)
    resized_double = Cast<to=11>(resized)
    scale = Div(old_double, resized_double)
    source = Range(int_zero, old, int_one)
"""
"""Which pixels of the resized image the crop keeps, ``kept``; those not ``inside`` are border."""

_WEIGHTS = """
    kept_double = Cast<to=11>(kept)
    kept_middle = Add(kept_double, half)
    centre_row = Mul(kept_middle, scale)
    centre = Unsqueeze(centre_row, axis_one)
    filter_scale = Max(scale, one)
    support = Mul(reach, filter_scale)
    low = Sub(centre, support)
    low_rounded = Add(low, half)
    first = Floor(low_rounded)
    high = Add(centre, support)
    high_rounded = Add(high, half)
    stop = Floor(high_rounded)
    source_double = Cast<to=11>(source)
    from_first_on = GreaterOrEqual(source_double, first)
    before_stop = Less(source_double, stop)
    in_window = And(from_first_on, before_stop)
    off = Sub(source_double, centre)
    distance = Add(off, half)
    per_pixel = Div(one, filter_scale)
    t = Mul(distance, per_pixel)
    {filter}
    weight = Where(in_window, f, zero)
    total = ReduceSum(weight, axis_one)
    share = Div(weight, total)
    fixed = Mul(share, weight_scale)
    magnitude = Abs(fixed)
    magnitude_middle = Add(magnitude, half)
    magnitude_whole = Floor(magnitude_middle)
    sign = Sign(fixed)
    weights = Mul(magnitude_whole, sign)
"""
"""Whole ``weights`` ``(crop, source)`` in 22 bits, step by step as ``precompute_coeffs`` has it."""

_NEAREST = """
    scale_half = Mul(scale, half)
    start = Unsqueeze(scale_half, axis_zero)
    n_steps = Unsqueeze(last, axis_zero)
    rest = Expand(scale, n_steps)
    increments = Concat<axis=0>(start, rest)
    positions = CumSum(increments, int_zero)
    kept_positions = Gather(positions, kept)
    nearest_double = Floor(kept_positions)
    nearest = Cast<to=7>(nearest_double)
    nearest_column = Unsqueeze(nearest, axis_one)
    chosen = Equal(source, nearest_column)
    weights = Where(chosen, weight_scale, zero)
"""
"""The same for the filter that takes one pixel: Pillow adds the scale up, rounding as it goes."""

_PARTS = """
    scaled = Div(weights, part_scale)
    upper_double = Round(scaled)
    upper_scaled = Mul(upper_double, part_scale)
    lower_double = Sub(weights, upper_scaled)
    upper = Cast<to=1>(upper_double)
    lower = Cast<to=1>(lower_double)
"""

_ROUND = """
    upper_double = Cast<to=11>(upper_sum)
    lower_double = Cast<to=11>(lower_sum)
    upper_whole = Mul(upper_double, part_scale)
    sum = Add(upper_whole, lower_double)
    level = Div(sum, weight_scale)
    level_middle = Add(level, half)
    level_whole = Floor(level_middle)
    level_clipped = Clip(level_whole, zero, white)
    {out} = Cast<to=1>(level_clipped)
"""


_SIZES = """
    shape = Shape(pixels)
    y_old = Gather(shape, int_one)
    x_old = Gather(shape, int_two)
"""

_TO_SHORTER_SIDE = """
    y_long = Mul(y_target, y_old)
    y_whole = Div(y_long, x_old)
    y_resized = Max(y_whole, y_target)
    x_long = Mul(x_target, x_old)
    x_whole = Div(x_long, y_old)
    x_resized = Max(x_whole, x_target)
"""
"""Of a square target; the shorter side of the image becomes it, the longer is rounded down."""

_RATIO = """
    length = Cast<to=11>(old)
    target_double = Cast<to=11>(target)
    ratio = Div(length, target_double)
"""
_BY_RATIO = """
    exact = Div(length, common_ratio)
    rounded = Round(exact)
    at_least_one = Max(rounded, one)
    resized = Cast<to=7>(at_least_one)
"""

_PLANES = """
    colours = Cast<to=1>(pixels)
    values = Transpose<perm=[0, 3, 1, 2]>(colours)
    x_upper_columns = Transpose<perm=[1, 0]>(x_upper)
    x_lower_columns = Transpose<perm=[1, 0]>(x_lower)
"""

_FACTORS = {"x_upper_columns", "x_lower_columns", "y_upper", "y_lower"}
_ALONG_X = """
    upper_sum = MatMul({values}, x_upper_columns)
    lower_sum = MatMul({values}, x_lower_columns)
"""
_ALONG_Y = """
    upper_sum = MatMul(y_upper, {values})
    lower_sum = MatMul(y_lower, {values})
"""

_IS_TALL = """
    y_less = Sub(y_old, y_resized)
    x_less = Sub(x_old, x_resized)
    x_less_twice = Mul(x_less, int_two)
    is_lower = Greater(y_less, int_zero)
    is_lowest = Greater(y_less, x_less_twice)
    is_tall = And(is_lower, is_lowest)
"""
"""Whether Pillow from 13 on resizes down the columns first."""

_FINISH = """
    y_inside_column = Unsqueeze(y_inside, axis_one)
    inside_both = And(y_inside_column, x_inside)
    levels = Where(inside_both, resampled, border)
    unit = Div(levels, float_white)
    centred = Sub(unit, mean)
    image = Div(centred, std)
"""


def preprocessing_graph(preprocessing: Preprocessing, *, tall_first: bool) -> GraphProto:
    """The graph from ``pixels (n, h, w, 3)`` uint8 of any size to ``image (n, 3, h, w)`` float32.

    What ``preprocess_batch`` does to each image, in its order: resize, crop or fill up, normalise.

    Args:
        preprocessing: Of the network.
        tall_first: Resize tall images down their columns first, as Pillow does from 13 on.

    Returns:
        A graph for opset 20; all its names but those two begin with ``preprocess_``.
    """
    p = preprocessing
    nearest = p.interpolation == "nearest"
    weights = _NEAREST if nearest else _WEIGHTS.format(filter=_FILTERS[p.interpolation])
    nodes = [
        *_nodes(_SIZES),
        *_resize(p),
        *(node for axis in "yx" for node in _nodes(_PLACE + weights + _PARTS, axis)),
        *_nodes(_PLANES),
        # The order of the two passes shows in the rounding between them, of which this has none.
        *(_either_order() if tall_first and not nearest else _passes("xy", "resampled")),
        *_nodes(_FINISH),
    ]
    read = names_read(nodes)
    constants = [
        numpy_helper.from_array(value, PREFIX + name)
        for name, value in _constants(p).items()
        if PREFIX + name in read
    ]
    return helper.make_graph(
        nodes,
        "preprocess",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["batch", 3, *p.size])],
        constants,
    )


def names_read(nodes: Iterable[NodeProto]) -> set[str]:
    """What operators read, those in their branches too."""
    found = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            found |= names_read(attribute.g.node)
    return found


def _resize(p: Preprocessing) -> list[NodeProto]:
    """Height and width that the image is resized to, as ``preprocess.to_pixels`` has them."""
    if p.crop_mode == "squash":
        return _nodes("y_resized = Identity(y_target)\nx_resized = Identity(x_target)")
    if p.crop_mode == "center" and len({*_target(p)}) == 1:
        return _nodes(_TO_SHORTER_SIDE)
    larger = "Max" if p.crop_mode == "border" else "Min"
    return [
        *(node for axis in "yx" for node in _nodes(_RATIO, axis)),
        *_nodes(f"common_ratio = {larger}(y_ratio, x_ratio)"),
        *(node for axis in "yx" for node in _nodes(_BY_RATIO, axis)),
    ]


def _either_order() -> list[NodeProto]:
    """Both passes, the one down the columns first if the image is tall."""
    branches = {}
    for branch, order in (("then_branch", "yx"), ("else_branch", "xy")):
        result = f"{order}_resampled"
        output = helper.make_tensor_value_info(
            PREFIX + result, TensorProto.FLOAT, [None, 3, None, None]
        )
        branches[branch] = helper.make_graph(_passes(order, result), order, [], [output])
    result = PREFIX + "resampled"
    choice = helper.make_node("If", [PREFIX + "is_tall"], [result], name=result, **branches)
    return [*_nodes(_IS_TALL), choice]


def _passes(order: str, result: str) -> list[NodeProto]:
    """Resample along one axis, round to 8 bits, and the same along the other."""
    nodes, values = [], "values"
    for axis, out in zip(order, (f"{result}_once", result), strict=True):
        code = (_ALONG_X if axis == "x" else _ALONG_Y) + _ROUND
        nodes += _nodes(code.format(values=values, out=out), out, {values, out, *_FACTORS})
        values = out
    return nodes


def _target(p: Preprocessing) -> tuple[int, int]:
    height, width = (math.floor(side / p.crop_pct) for side in p.size)
    return height, width


def _constants(p: Preprocessing) -> dict[str, NDArray[Any]]:
    sides = zip(("y_target", "x_target", "y_size", "x_size"), (*_target(p), *p.size), strict=True)
    fill = [round(255 * value) if p.crop_mode == "border" else 0 for value in p.mean]
    return {
        **{name: np.array(value, np.float64) for name, value in _NUMBERS.items()},
        "reach": np.array(_SUPPORT.get(p.interpolation, 0.0)),
        **{name: np.array(value, np.int64) for name, value in (*_WHOLE.items(), *sides)},
        "axis_zero": np.array([0], np.int64),
        "axis_one": np.array([1], np.int64),
        "float_white": np.array(255, np.float32),
        **{
            name: np.array(values, np.float32)[:, None, None]
            for name, values in (("mean", p.mean), ("std", p.std), ("border", fill))
        },
    }


def _nodes(code: str, own: str = "", known: Collection[str] = ()) -> list[NodeProto]:
    """The operators of a piece of code.

    Args:
        code: In the textual syntax of ONNX.
        own: What the names of this piece begin with, if it is there more than once.
        known: Names of other pieces in it.
    """

    def renamed(name: str) -> str:
        if name in (PIXELS, IMAGE):
            return name
        return PREFIX + (f"{own}_{name}" if own and name not in {*_SHARED, *known} else name)

    nodes = list(parser.parse_graph(f"piece () => () {{{code}}}").node)
    for node in nodes:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.name = node.output[0]
    return nodes
