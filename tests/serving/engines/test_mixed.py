"""One batch for many tasks computes what each task's merged network does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from factories import LAYERS, make_draft
from glora_deploy.glora.forms import LayerForms, LayerShape
from glora_deploy.serving.engines.mixed import MixedNetwork, can_be_mixed, linear_layers
from glora_deploy.serving.engines.mixed_graph import with_row_terms
from glora_deploy.serving.errors import LoadError
from glora_deploy.store.manifest import ManifestDraft
from glora_deploy.store.mapped_safetensors import map_tensors
from onnx_networks import make_images, make_network, make_skeleton, torch_logits, write_weights
from reference import reference_merge

ATOL = 5e-5  # float32; the sums of a merged layer are formed in another order

FORMS = (
    "A=vector B=lora:3 C=lora:2 D=vector E=vector",
    "A=scalar B=lora:1 C=vector D=scalar E=scalar",
    "A=none B=vector C=none D=none E=vector",
    "A=vector B=scalar C=none D=vector E=none",
    "A=none B=none C=none D=none E=none",
)
N_CLASSES = (5, 3, 8, 5, 1)
HEAD = ("head.weight", "head.bias")


class Case:
    """A backbone, and for each of ``FORMS`` a task on it with its merged network."""

    def __init__(self, folder: Path) -> None:
        self.frozen = make_network("vit", seed=0)
        self.weights = write_weights(self.frozen, folder)
        state = {name: tensor.numpy() for name, tensor in self.frozen.state_dict().items()}
        self.layers = {
            name.removesuffix(".weight"): LayerShape(
                kind="linear", d_out=value.shape[0], d_in=value.shape[1], bias=True
            )
            for name, value in state.items()
            if value.ndim == 2 and name.startswith("blocks.")
        }
        self.tasks = [self._task(state, index) for index in range(len(FORMS))]
        self.network = MixedNetwork(
            make_skeleton("vit"),
            self.weights,
            map_tensors(self.weights),
            layers=dict.fromkeys(self.layers, True),
            head=HEAD,
            threads=1,
        )

    def _task(
        self, state: dict[str, NDArray[np.float32]], index: int
    ) -> tuple[ManifestDraft, dict[str, NDArray[np.float32]], NDArray[np.float32]]:
        """Draft, delta, and the logits that its merged network gives for all images."""
        rng = np.random.default_rng(index)
        forms = LayerForms.parse(FORMS[index])
        labels = tuple(f"class {n}" for n in range(N_CLASSES[index]))
        draft = make_draft({name: (shape, str(forms)) for name, shape in self.layers.items()})
        draft = draft.model_copy(update={"labels": labels})
        delta = {
            name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in draft.support_shapes().items()
        }
        network = make_network("vit", seed=0)
        merged = network.state_dict()
        for layer in self.layers:
            supports = {
                name.removeprefix(f"{layer}."): value
                for name, value in delta.items()
                if name.startswith(f"{layer}.")
            }
            w, b = reference_merge(state[f"{layer}.weight"], state[f"{layer}.bias"], supports)
            merged[f"{layer}.weight"].copy_(merged[f"{layer}.weight"].new_tensor(w))
            assert b is not None
            merged[f"{layer}.bias"].copy_(merged[f"{layer}.bias"].new_tensor(b))
        network.reset_classifier(len(labels))
        for name in HEAD:
            value = rng.standard_normal(network.state_dict()[name].shape).astype(np.float32)
            network.state_dict()[name].copy_(merged[f"{layer}.bias"].new_tensor(value))
            delta[name] = value
        return draft, delta, torch_logits(network.eval(), make_images("vit"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("mixed"))


def terms_of(case: Case, index: int):  # type: ignore[no-untyped-def]
    draft, delta, _ = case.tasks[index]
    return case.network.terms(draft, delta)  # type: ignore[arg-type]  # all it reads is in a draft


@pytest.mark.parametrize("index", range(len(FORMS)))
def test_a_task_alone_answers_as_its_merged_network(case: Case, index: int) -> None:
    images = make_images("vit")
    (logits,) = case.network.run([(terms_of(case, index), images)])
    np.testing.assert_allclose(logits, case.tasks[index][2], atol=ATOL)


def test_many_tasks_in_one_batch_each_answer_as_their_merged_network(case: Case) -> None:
    images = make_images("vit")
    rows = [[0], [1, 2], [4, 3, 0], [2], [1]]
    parts = [(terms_of(case, index), images[rows[index]]) for index in range(len(FORMS))]
    logits = case.network.run(parts)
    for index, found in enumerate(logits):
        expected = case.tasks[index][2][rows[index]]
        assert found.shape == (len(rows[index]), N_CLASSES[index])
        np.testing.assert_allclose(found, expected, atol=ATOL)
    others = case.tasks[0][2][:1] - case.tasks[3][2][:1]
    assert np.abs(others).max() > 1000 * ATOL  # tasks of as many classes are told apart


def test_the_size_of_terms_is_what_they_take(case: Case) -> None:
    for index in range(len(FORMS)):
        draft, delta, _ = case.tasks[index]
        n_head = sum(delta[name].size for name in HEAD)
        terms = terms_of(case, index)
        size = sum(value.nbytes for value in terms.values.values())

        class Stated:  # what size_of reads of a manifest
            n_head_parameters = n_head
            shapes, subnet = draft.shapes, draft.subnet

        assert case.network.size_of(Stated) == size  # type: ignore[arg-type]


def test_forms_decide_who_can_share_a_batch() -> None:
    shape, _ = LAYERS["blocks.0.attn.qkv"]
    norm, _ = LAYERS["blocks.0.norm1"]
    for forms, norm_forms, expected in (
        ("A=vector B=lora:2 C=lora:1 D=vector E=scalar", "", True),
        ("A=scalar", "", True),
        ("", "", True),
        ("A=lora:2", "", False),
        ("A=vector", "A=vector", False),
        ("A=vector", "E=scalar", False),
    ):
        draft = make_draft({"blocks.0.attn.qkv": (shape, forms), "norm": (norm, norm_forms)})
        assert can_be_mixed(draft) == expected, (forms, norm_forms)  # type: ignore[arg-type]
        assert linear_layers(draft) == {"blocks.0.attn.qkv": True}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "layer", "head", "why"),
    [
        # Windows of an image are images of their own there.
        ("swin", "layers.0.blocks.0.attn.qkv", "head.fc", "its input must be"),
        ("convnext", "stages.0.blocks.0.conv_dw", "head.fc", "must be read by one Transpose"),
        ("vit", "patch_embed.proj", "head", "must be read by one Transpose"),
    ],
)
def test_networks_whose_rows_are_not_images_are_refused(
    kind: str, layer: str, head: str, why: str
) -> None:
    with pytest.raises(LoadError, match=f"^{layer}: .*{why}"):
        with_row_terms(make_skeleton(kind), {layer: True}, (f"{head}.weight", f"{head}.bias"))


def test_the_graph_that_was_given_is_left_as_it_was() -> None:
    skeleton = make_skeleton("vit")
    before = skeleton.SerializeToString()
    model = with_row_terms(skeleton, {"blocks.0.mlp.fc1": True}, HEAD)
    assert skeleton.SerializeToString() == before
    assert {value.name for value in model.graph.input} == {
        "image",
        *HEAD,
        *(f"blocks.0.mlp.fc1.{part}" for part in ("scale", "up", "down", "shift")),
    }
    assert "blocks.0.mlp.fc1.weight" in {weight.name for weight in model.graph.initializer}
