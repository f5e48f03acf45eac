from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import DataError, NonFiniteError
from glora_deploy.serving import Prediction, Predictor, predictor as module
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from tasks import COLOURS, make_images

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def predictor(trained: tuple[ArtifactStore, Artifact]) -> Predictor:
    return Predictor.from_store(trained[0].root, "colours")


def make_pictures(n: int = 9, *, seed: int = 5) -> list[Image.Image]:
    """Pictures of 40 x 40 pixels, larger than what the network sees: red, green, blue in turn."""
    images = make_images(n, seed=seed, size=40)
    return [images.image(i) for i in range(n)]


def as_bytes(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def by_label(answer: Prediction) -> list[float]:
    """Probabilities in the order of the task's labels."""
    found = {one.label: one.probability for one in answer.top}
    return [found[label] for label in LABELS]


def test_a_trained_task_names_what_a_picture_shows(predictor: Predictor) -> None:
    answers = predictor.predict_batch(make_pictures())
    assert [answer.label for answer in answers] == [*LABELS] * 3


def test_probabilities_are_those_of_the_exported_model_run_by_hand(
    predictor: Predictor, trained: tuple[ArtifactStore, Artifact]
) -> None:
    store, artifact = trained
    path = store.export_dir(artifact, "fp32") / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    images = Preprocessing(**json.loads(stated["preprocessing"]))
    pictures = make_pictures()
    (logits,) = session.run(["logits"], {"image": preprocess_batch(pictures, images)})
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    answers = predictor.predict_batch(pictures, top_k=None)
    # float32 logits of the same session type on the same batch; the softmax is float64
    np.testing.assert_allclose([by_label(a) for a in answers], shares, rtol=1e-6, atol=0)
    for answer in answers:
        given = [one.probability for one in answer.top]
        assert given == sorted(given, reverse=True)
        assert sum(given) == pytest.approx(1, abs=1e-12)


def test_an_answer_names_the_delta_that_gave_it(
    predictor: Predictor, trained: tuple[ArtifactStore, Artifact]
) -> None:
    _, artifact = trained
    answer = predictor.predict(make_pictures(1)[0])
    for named in (answer, predictor):
        assert (named.task, named.version) == ("colours", "v1")
        assert named.delta_sha256 == artifact.manifest.adapter.sha256
    assert predictor.labels == LABELS
    assert predictor.precision == "fp32"
    assert predictor.preprocessing.size == (32, 32)


def test_a_path_its_bytes_the_open_image_and_its_pixels_answer_alike(
    predictor: Predictor, tmp_path: Path
) -> None:
    picture = make_pictures(1)[0]
    path = tmp_path / "picture.png"
    picture.save(path)
    with Image.open(path) as opened:
        sources = [path, str(path), path.read_bytes(), opened, picture, np.asarray(picture)]
        answers = [predictor.predict(source) for source in sources]
    assert answers == [answers[0]] * len(sources)


def test_an_open_image_is_turned_and_scaled_as_its_file_is(
    predictor: Predictor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide = np.zeros((30, 60, 3), np.uint8)
    wide[:, :30] = COLOURS[0]
    turned = tmp_path / "turned.png"
    Image.fromarray(wide).save(turned, exif=exif)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 72).save(deep)
    seen = Image.new("P", (20, 20), 1)
    seen.putpalette([0, 0, 0, 200, 40, 40])
    palette = tmp_path / "palette.png"
    seen.save(palette, transparency=b"\xff\x80")
    for path in (turned, deep, palette):
        with Image.open(path) as opened:
            assert predictor.predict(opened) == predictor.predict(path), path.name


def test_top_k_bounds_how_many_labels_are_given(predictor: Predictor) -> None:
    picture = make_pictures(1)[0]
    complete = predictor.predict(picture, top_k=None)
    assert len(complete.top) == 3
    assert predictor.predict(picture, top_k=2).top == complete.top[:2]
    assert predictor.predict(picture, top_k=7) == complete
    with pytest.raises(ValueError, match="top_k must be at least 1, or None for all labels, got 0"):
        predictor.predict(picture, top_k=0)


def test_a_batch_may_be_any_iterable_of_any_length(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 4)
    pictures = make_pictures(9)
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    expected = [by_label(predictor.predict(picture)) for picture in pictures]
    for batch in (pictures, iter(pictures), pixels):
        found = [by_label(answer) for answer in predictor.predict_batch(batch)]
        # float32; kernels may sum in another order for another batch size
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert predictor.predict_batch([]) == []


def test_threads_get_the_answers_that_one_after_another_gives(predictor: Predictor) -> None:
    sources = [as_bytes(picture) for picture in make_pictures(60)]
    alone = [predictor.predict(source, top_k=None) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda source: predictor.predict(source, top_k=None), sources))
    assert together == alone


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (b"GIF89a", DataError, "image: must be a whole JPEG, PNG, WEBP image"),
        ("missing.png", DataError, "missing.png: cannot be read: No such file"),
        (np.zeros((4, 5), np.uint8), ValueError, r"uint8 \(h, w, 3\), .* got uint8 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"got uint8 \(3, 4, 5\)"),
        (np.zeros((4, 5, 3), np.float32), ValueError, r"got float32 \(4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "1 to 50,000,000 pixels, got 5 x 0"),
        (Image.new("L", (8_000, 8_000)), ValueError, "pixels, got 8000 x 8000"),
        (Image.new("F", (4, 4)), DataError, "must have 8 or 16 bits, got floating-point"),
        (7, TypeError, "an image must be a path, bytes, .* got int"),
    ],
)
def test_what_is_no_image_is_refused(
    predictor: Predictor, source: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict(source)
    with pytest.raises(error, match=rf"images\[1\]: .*{message}"):
        predictor.predict_batch([make_pictures(1)[0], source])


def test_a_damaged_image_that_is_not_decoded_yet_is_refused(predictor: Predictor) -> None:
    whole = as_bytes(make_pictures(1)[0])
    with (
        Image.open(io.BytesIO(whole[: len(whole) // 2])) as opened,
        pytest.raises(DataError, match="image: must be whole, but decoding it failed"),
    ):
        predictor.predict(opened)


def test_one_image_is_no_batch(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"images must be several, got one bytes. Use predict"):
        predictor.predict_batch(b"\x89PNG")


def test_nan_is_no_answer(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(predictor._model.session), "logits", lambda self, images: np.full((1, 3), np.nan)
    )
    with pytest.raises(NonFiniteError, match="fp32: logits must be finite"):
        predictor.predict(make_pictures(1)[0])


def test_it_answers_for_its_version_after_another_became_current(own_store: ArtifactStore) -> None:
    before = Predictor.from_store(own_store.root, "colours")
    first = own_store.get("colours", "v1")
    own_store.put("colours", first.tensors(), first.manifest)
    assert own_store.current("colours") == "v2"
    picture = make_pictures(1)[0]
    assert before.predict(picture).version == "v1"
    assert Predictor.from_store(own_store.root, "colours", "v1").version == "v1"
    shutil.rmtree(own_store.root)
    assert before.predict(picture).version == "v1"


def test_it_brings_neither_torch_nor_onnx(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    make_pictures(1)[0].save(path)
    code = f"""
import sys
blocked = {{"torch", "torchvision", "timm", "onnx", "onnxscript", "glora_deploy.export"}}
sys.modules.update(dict.fromkeys(blocked))
from glora_deploy.serving import Predictor
print(Predictor.from_store({str(trained[0].root)!r}, "colours").predict({str(path)!r}).label)
found = {{name for name, module in sys.modules.items() if module}}
print(*(name for name in found if name.partition(".")[0] in blocked or "export." in name))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["red", ""]
