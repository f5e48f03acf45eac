from __future__ import annotations

import random
import re
from typing import Any

import pytest

from glora_deploy.glora.forms import (
    NONE,
    SCALAR,
    SUPPORTS,
    VECTOR,
    Form,
    LayerForms,
    LayerShape,
    SearchSpace,
    Subnet,
    Support,
)
from layers import every_paths

LINEAR = LayerShape(kind="linear", d_out=7, d_in=5, bias=True)
NO_BIAS = LayerShape(kind="conv", d_out=7, d_in=5, bias=False)
AFFINE = LayerShape(kind="affine", d_out=7, d_in=1, bias=True)
LORA = Form("lora", 3)


def words(text: str) -> list[str]:
    return text.split()


# Paths


@pytest.mark.parametrize("text", ["lora:1", "lora:64", "vector", "scalar", "none"])
def test_a_path_is_printed_as_it_is_read(text: str) -> None:
    assert str(Form.parse(text)) == text


def test_a_path_is_read_into_its_kind_and_rank() -> None:
    assert Form.parse("lora:12") == Form("lora", 12)
    assert Form.parse("vector") == VECTOR == Form("vector", 0)
    assert Form.parse("scalar") == SCALAR == Form("scalar", 0)
    assert Form.parse("none") == NONE == Form("none", 0)


@pytest.mark.parametrize(
    "text", ["", "lora", "lora:", "lora:x", "lora:-1", "lora:1.5", "vector:2", "Lora:1", "constant"]
)
def test_text_that_is_no_path_is_refused(text: str) -> None:
    rule = f"a path is lora:RANK, vector, scalar or none, got '{text}'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        Form.parse(text)


@pytest.mark.parametrize(("kind", "rank"), [("lora", 0), ("lora", -1), ("vector", 1), ("none", 2)])
def test_a_rank_belongs_to_lora_alone(kind: Any, rank: int) -> None:
    rule = f"a lora path has a rank of at least 1, others have 0; got Form(kind='{kind}'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}"):
        Form(kind, rank)
    with pytest.raises(ValueError, match="a lora path has a rank of at least 1"):
        Form.parse("lora:0")


def test_a_kind_that_there_is_not_is_refused() -> None:
    rule = "path kind must be one of ('lora', 'vector', 'scalar', 'none'), got 'constant'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        Form("constant")  # type: ignore[arg-type]


# Shapes of a layer


@pytest.mark.parametrize(
    ("shape", "support", "expected"),
    [
        (LINEAR, "A", "lora:4 lora:2 vector scalar none"),
        (LINEAR, "B", "lora:4 lora:2 vector scalar none"),
        (LINEAR, "C", "lora:4 lora:2 vector none"),
        (LINEAR, "D", "vector scalar none"),
        (LINEAR, "E", "vector scalar none"),
        (NO_BIAS, "A", "lora:4 lora:2 vector scalar none"),
        (NO_BIAS, "B", "lora:4 lora:2 vector scalar none"),
        (NO_BIAS, "C", "none"),
        (NO_BIAS, "D", "none"),
        (NO_BIAS, "E", "none"),
        (AFFINE, "A", "vector scalar none"),
        (AFFINE, "B", "vector scalar none"),
        (AFFINE, "C", "none"),
        (AFFINE, "D", "vector scalar none"),
        (AFFINE, "E", "vector scalar none"),
    ],
)
def test_the_paths_on_offer_are_those_of_the_table_largest_first(
    shape: LayerShape, support: Support, expected: str
) -> None:
    assert [str(path) for path in shape.choices(support, [2, 4])] == words(expected)


@pytest.mark.parametrize(
    ("support", "path", "expected"),
    [
        ("A", LORA, {"A_d": (7, 3), "A_u": (3, 5)}),
        ("B", LORA, {"B_d": (7, 3), "B_u": (3, 5)}),
        ("C", LORA, {"C_d": (5, 3), "C_u": (3, 1)}),
        ("A", VECTOR, {"A": (7, 1)}),
        ("B", VECTOR, {"B": (7, 1)}),
        ("C", VECTOR, {"C": (5, 1)}),
        ("D", VECTOR, {"D": (7,)}),
        ("E", VECTOR, {"E": (7,)}),
        ("A", SCALAR, {"A": (1, 1)}),
        ("B", SCALAR, {"B": (1, 1)}),
        ("D", SCALAR, {"D": (1,)}),
        ("E", SCALAR, {"E": (1,)}),
        ("A", NONE, {}),
        ("C", NONE, {}),
        ("E", NONE, {}),
    ],
)
def test_tensors_have_the_shapes_of_the_table(
    support: Support, path: Form, expected: dict[str, tuple[int, ...]]
) -> None:
    assert LINEAR.tensor_shapes(support, path) == expected


@pytest.mark.parametrize(
    ("shape", "support", "path"),
    [
        (LINEAR, "C", SCALAR),
        (LINEAR, "D", LORA),
        (LINEAR, "E", LORA),
        (NO_BIAS, "C", VECTOR),
        (NO_BIAS, "D", SCALAR),
        (NO_BIAS, "E", VECTOR),
        (AFFINE, "A", LORA),
        (AFFINE, "C", LORA),
    ],
)
def test_a_path_that_a_support_cannot_take_is_refused(
    shape: LayerShape, support: Support, path: Form
) -> None:
    with pytest.raises(ValueError, match=rf"^{support} cannot be {path} on LayerShape\(kind="):
        shape.tensor_shapes(support, path)


@pytest.mark.parametrize(
    ("shape", "tensors", "rule"),
    [
        (LINEAR, {"A": (1, 7)}, "A must have shape (7, 1) where w0 is (7, 5), got (1, 7)"),
        (LINEAR, {"A": (7,)}, "A must have shape (7, 1) where w0 is (7, 5), got (7,)"),
        (LINEAR, {"A": (1,)}, "A must have shape (1, 1) where w0 is (7, 5), got (1,)"),
        (LINEAR, {"D": (7, 1)}, "D must have shape (7,) where w0 is (7, 5), got (7, 1)"),
        (LINEAR, {"C": (1, 1)}, "C must have shape (5, 1) where w0 is (7, 5), got (1, 1)"),
        (LINEAR, {"B_d": (7, 2)}, "B_u must have shape (2, 5) where w0 is (7, 5), got none"),
        (
            LINEAR,
            {"B_d": (7, 2), "B_u": (3, 5)},
            "B_u must have shape (2, 5) where w0 is (7, 5), got (3, 5)",
        ),
        (
            LINEAR,
            {"B_d": (7, 0), "B_u": (0, 5)},
            "B_d must have shape (7, 1) where w0 is (7, 5), got (7, 0)",
        ),
        (
            LINEAR,
            {"B_d": (), "B_u": (1, 5)},
            "B_d must have shape (7, 1) where w0 is (7, 5), got ()",
        ),
        (
            LINEAR,
            {"B_d": (2,), "B_u": (2, 5)},
            "B_d must have shape (7, 2) where w0 is (7, 5), got (2,)",
        ),
        (LINEAR, {"B_u": (2, 5)}, "B_u must be absent where w0 is (7, 5), got (2, 5)"),
        (LINEAR, {"D_d": (7, 1)}, "D_d must be absent where w0 is (7, 5), got (7, 1)"),
        (LINEAR, {"F": (7,)}, "F must be absent where w0 is (7, 5), got (7,)"),
        (NO_BIAS, {"E": (7,)}, "E must be absent where w0 is (7, 5) without b0, got (7,)"),
        (AFFINE, {"A": (7,)}, "A must have shape (7, 1) where w0 is (7,), got (7,)"),
        (AFFINE, {"C": (1, 1)}, "C must be absent where w0 is (7,), got (1, 1)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    shape: LayerShape, tensors: dict[str, tuple[int, ...]], rule: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        shape.require_fit(tensors)


@pytest.mark.parametrize("shape", [LINEAR, NO_BIAS, AFFINE])
@pytest.mark.parametrize("support", SUPPORTS)
def test_tensors_of_every_path_fit(shape: LayerShape, support: Support) -> None:
    for path in shape.choices(support, [1, 3]):
        shape.require_fit(shape.tensor_shapes(support, path))


def test_a_vector_of_one_row_is_a_scalar_and_a_prompt_of_one_column_fits() -> None:
    one = LayerShape(kind="linear", d_out=1, d_in=1, bias=True)
    one.require_fit({"A": (1, 1), "C": (1, 1), "D": (1,)})


@pytest.mark.parametrize("shape", [LINEAR, NO_BIAS, AFFINE])
def test_the_paths_of_a_layer_are_told_by_its_tensors(shape: LayerShape) -> None:
    for paths in every_paths(shape):
        assert LayerForms.of(paths.tensor_shapes(shape)) == paths


def test_the_c_of_a_layer_with_one_input_is_a_vector() -> None:
    one_input = LayerShape(kind="linear", d_out=3, d_in=1, bias=True)
    paths = LayerForms.of({"C": (1, 1), "E": (1,)})
    assert str(paths) == "A=none B=none C=vector D=none E=scalar"
    assert paths.tensor_shapes(one_input) == {"C": (1, 1), "E": (1,)}


# Paths of a layer


def test_the_paths_of_a_layer_are_printed_as_they_are_read() -> None:
    text = "A=lora:4 B=vector C=none D=scalar E=none"
    paths = LayerForms.parse(text)
    assert str(paths) == text
    assert paths == LayerForms(A=Form("lora", 4), B=VECTOR, D=SCALAR)
    assert [*paths.items()] == [
        ("A", Form("lora", 4)),
        ("B", VECTOR),
        ("C", NONE),
        ("D", SCALAR),
        ("E", NONE),
    ]
    assert [paths[support] for support in SUPPORTS] == [path for _, path in paths.items()]


def test_a_support_left_out_is_none_and_the_order_does_not_matter() -> None:
    assert LayerForms.parse("") == LayerForms()
    assert LayerForms.parse("E=vector A=scalar") == LayerForms(A=SCALAR, E=VECTOR)


@pytest.mark.parametrize("item", ["F=vector", "A=vector", "vector", "=vector", "a=vector"])
def test_a_support_that_is_unknown_or_named_twice_is_refused(item: str) -> None:
    rule = f"supports are A to E, each once, as in A=lora:4; got '{item}'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        LayerForms.parse(f"A=none {item}")


def test_what_follows_the_first_equals_sign_is_the_path() -> None:
    with pytest.raises(ValueError, match=r"^a path is .*, got 'lora=4'$"):
        LayerForms.parse("A=lora=4")


def test_a_layer_stores_the_tensors_of_all_its_supports() -> None:
    paths = LayerForms(A=LORA, B=SCALAR, C=VECTOR, D=VECTOR, E=SCALAR)
    assert paths.tensor_shapes(LINEAR) == {
        "A_d": (7, 3),
        "A_u": (3, 5),
        "B": (1, 1),
        "C": (5, 1),
        "D": (7,),
        "E": (1,),
    }
    assert paths.n_parameters(LINEAR) == 21 + 15 + 1 + 5 + 7 + 1
    assert LayerForms().n_parameters(LINEAR) == 0
    with pytest.raises(ValueError, match="C cannot be vector"):
        paths.n_parameters(NO_BIAS)


# Subnets


SUBNET = Subnet({"b": LayerForms(A=LORA), "a": LayerForms(E=VECTOR)})
SHAPES = {"b": LINEAR, "a": AFFINE}


def test_a_subnet_is_printed_as_it_is_read_in_the_order_of_its_layers() -> None:
    text = "b: A=lora:3 B=none C=none D=none E=none\na: A=none B=none C=none D=none E=vector"
    assert str(SUBNET) == text
    assert Subnet.parse(f"\n{text}\n \n") == SUBNET
    assert [*Subnet.parse(" b :A=lora:3\na:")] == ["b", "a"]
    assert len(SUBNET) == 2


@pytest.mark.parametrize("line", ["b: A=none", "c", ": A=none", "A=lora:4"])
def test_a_line_that_is_no_layer_or_names_one_twice_is_refused(line: str) -> None:
    if line == "A=lora:4":  # the colon is the rank's, so what is before it counts as the layer
        with pytest.raises(ValueError, match="supports are A to E"):
            Subnet.parse(line)
        return
    rule = f"a subnet line is 'layer: A=...', each layer once; got '{line}'"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        Subnet.parse(f"b: A=vector\n{line}")


def test_equal_subnets_are_one_key_and_others_are_not() -> None:
    again = Subnet(dict(SUBNET))
    other = Subnet({**SUBNET, "a": LayerForms()})
    assert again == SUBNET
    assert hash(again) == hash(SUBNET)
    assert {SUBNET: 1}[again] == 1
    assert other != SUBNET
    assert len({SUBNET, again, other}) == 2
    assert dict(SUBNET) != SUBNET


def test_a_subnet_is_not_changed_by_what_it_was_made_of() -> None:
    layers = {"a": LayerForms()}
    subnet = Subnet(layers)
    layers["b"] = LayerForms()
    assert [*subnet] == ["a"]


def test_a_subnet_is_shown_by_its_size_and_a_short_hash() -> None:
    assert repr(SUBNET) == f"Subnet(2 layers, {hash(SUBNET) % 2**32:08x})"
    assert repr(SUBNET) != repr(Subnet({**SUBNET, "a": LayerForms()}))


def test_the_numbers_of_a_subnet_add_up_over_its_layers() -> None:
    assert SUBNET.n_parameters(SHAPES) == (7 * 3 + 3 * 5) + 7


def test_a_subnet_of_other_layers_is_refused_with_the_first_three() -> None:
    shapes = dict.fromkeys("bfedc", LINEAR)
    rule = "subnet and backbone differ in 5 layers: ['a', 'c', 'd']"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        SUBNET.n_parameters(shapes)


# The space of subnets


SPACE = SearchSpace(SHAPES, (2, 4))


def test_a_space_offers_every_rank_largest_first() -> None:
    assert [str(p) for p in SPACE.choices("b", "A")] == words("lora:4 lora:2 vector scalar none")
    assert SPACE.choices("a", "C") == (NONE,)


def test_the_extremes_store_most_and_nothing() -> None:
    assert str(SPACE.largest()) == (
        "b: A=lora:4 B=lora:4 C=lora:4 D=vector E=vector\n"
        "a: A=vector B=vector C=none D=vector E=vector"
    )
    assert SPACE.smallest() == Subnet({"b": LayerForms(), "a": LayerForms()})
    assert [*SPACE.largest()] == ["b", "a"]


def test_a_drawn_subnet_takes_every_path_equally_often() -> None:
    rng = random.Random(0)
    drawn = [SPACE.draw(rng) for _ in range(3000)]
    for layer in SHAPES:
        for support in SUPPORTS:
            offered = SPACE.choices(layer, support)
            for path in offered:
                share = sum(subnet[layer][support] == path for subnet in drawn) / len(drawn)
                # Four standard deviations of a share of a half.
                assert share == pytest.approx(1 / len(offered), abs=0.037)
    assert [SPACE.draw(random.Random(5)) for _ in range(2)] == [SPACE.draw(random.Random(5))] * 2


def test_a_space_contains_what_it_draws() -> None:
    rng = random.Random(1)
    for _ in range(50):
        subnet = SPACE.draw(rng)
        assert subnet.keys() == SHAPES.keys()
        for layer, paths in subnet.items():
            assert all(path in SPACE.choices(layer, support) for support, path in paths.items())


@pytest.mark.parametrize(
    ("subnet", "rule"),
    [
        ("b: \na: A=lora:2", "A cannot be lora:2 on LayerShape"),
        ("b: ", "subnet and backbone differ in 1 layers: ['a']"),
    ],
)
def test_a_subnet_of_other_layers_is_not_counted(subnet: str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}"):
        Subnet.parse(subnet).n_parameters(SHAPES)


def test_a_space_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a search space needs at least one layer$"):
        SearchSpace({}, (2,))


@pytest.mark.parametrize("ranks", [(2, 2), (0,), (4, -1)])
def test_ranks_are_distinct_and_positive(ranks: tuple[int, ...]) -> None:
    rule = f"ranks must be distinct and at least 1, got {ranks}"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        SearchSpace(SHAPES, ranks)


def test_a_space_may_offer_no_lora_at_all() -> None:
    space = SearchSpace(SHAPES, ())
    assert [str(path) for path in space.choices("b", "A")] == words("vector scalar none")
    SearchSpace(SHAPES, (1,))
