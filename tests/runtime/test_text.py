"""Tokenizer: the official ids. TextEmbedder: encodes once, survives a broken cache, names the class."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import golden_tokenizer
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from export.tokenizer import find_bpe_vocabulary, write_clip_tokenizer
from runtime.errors import BundleError, EngineError, InputError, OutputError
from runtime.text import EOT, SOT, TextEmbedder, Tokenizer, clean

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer.json"
PROMPT = "A photo of a {} in the scene"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_clip_tokenizer(find_bpe_vocabulary(None), file)
    return Tokenizer.from_file(file)


class FakeEncoder:
    """Unit halves that depend on the ids alone; counts what it is asked to do."""

    def __init__(self, channels: int = 8) -> None:
        self.channels = channels
        self.batches: list[int] = []

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int64 and ids.shape[1] == 77
        self.batches.append(len(ids))
        rows = [np.random.default_rng(row).standard_normal((2, self.channels)) for row in ids]
        halves = np.stack(rows).astype(np.float32)
        return halves / np.linalg.norm(halves, axis=-1, keepdims=True)


def embedder(clip: Tokenizer, encode: FakeEncoder, cache_dir: Path | None = None, **changes: object) -> TextEmbedder:
    options = {"prompt_template": PROMPT, "first_synonym": False, "cache_key": "key", **changes}
    return TextEmbedder(clip, encode, cache_dir=cache_dir, **options)  # type: ignore[arg-type]


def small_tokenizer(words: Sequence[str]) -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(["<unk>", *words, SOT, EOT])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(tokenizer, context_length=8)


# --- tokenizer


def test_golden_file_has_no_mismatch() -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is not there")
    cases, mismatches = golden_tokenizer.run(GOLDEN)
    assert cases >= 25 and mismatches == 0


def test_golden_run_counts_a_mismatch(tmp_path: Path) -> None:
    case = {"text": "a cat", "ids": [49406, 320, 2368, 49407] + [0] * 73, "eot_pos": 3}
    wrong_ids = {**case, "ids": [49406, 320, 2369, 49407] + [0] * 73}
    wrong_position = {**case, "eot_pos": 2}
    file = tmp_path / "golden.json"
    file.write_text(json.dumps({"meta": {"context_length": 77}, "cases": [case, wrong_ids, wrong_position]}))
    assert golden_tokenizer.run(file) == (3, 2)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  Traffic \t\n LIGHT ", "traffic light"),
        ("Ａ ｐｈｏｔｏ\u3000ｏｆ", "a photo of"),
        ("don’t “quote”", 'don\'t "quote"'),
        ("cafÃ©", "café"),
        ("&amp;amp; &lt;b&gt;", "& <b>"),
        ("ﬁsh", "fish"),
        ("إشارة", "إشارة"),
        ("", ""),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@pytest.mark.parametrize("text", ["日本語の信号機", "😀 emoji 👩‍👩‍👧", "إشارة المرور", "हिन्दी", "\x00\u200b", "½ Ⅷ ſ"])
def test_every_script_becomes_ids_that_end(clip: Tokenizer, text: str) -> None:
    ids = clip.encode([text])
    assert ids.shape == (1, 77) and ids.dtype == np.int64
    end = int(ids[0].argmax())
    assert ids[0, 0] == 49406 and ids[0, end] == 49407 and not ids[0, end + 1 :].any()
    assert clip.tokenize(text).unknown == ()


def test_long_text_is_cut_and_ends_with_eot(clip: Tokenizer) -> None:
    assert len(clip.tokenize("word " * 75).ids) == 77
    fits, cut = clip.encode(["word " * 75, "word " * 76])
    assert fits[-1] == cut[-1] == 49407 and fits[-2] == cut[-2] == 2653
    assert len(clip.tokenize("word " * 76).ids) == 78  # how a caller knows that it was too long


def test_special_token_in_text_is_one_only_where_the_official_pattern_sees_it(clip: Tokenizer) -> None:
    assert clip.tokenize("a<|endoftext|> b").ids.count(49407) == 2
    assert clip.tokenize("<|startoftext|><|endoftext|>").ids == (49406, 49406, 49407, 49407)
    assert clip.tokenize("!<|endoftext|> b").ids.count(49407) == 1  # swallowed by the run of punctuation


def test_unknown_words_are_named_not_guessed() -> None:
    small = small_tokenizer(["a", "photo", "of", "cat"])
    assert small.encode(["A photo of a cat"])[0].tolist() == [5, 1, 2, 3, 1, 4, 6, 0]
    assert small.tokenize("a zebra or zebra cat").unknown == ("zebra", "or")
    with pytest.raises(
        InputError, match=r"'a zebra': the tokenizer does not know 'zebra'; it knows only a, cat, of, photo"
    ):
        small.encode(["a cat", "a zebra"])


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    with pytest.raises(BundleError, match=r"cannot read the tokenizer .*rebuild the bundle"):
        Tokenizer.from_file(broken)
    broken.write_text("{]")
    with pytest.raises(BundleError, match="cannot read the tokenizer"):
        Tokenizer.from_file(broken)
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(broken))
    with pytest.raises(BundleError, match=r"no token <\|startoftext\|>"):
        Tokenizer.from_file(broken)
    tokenizers.Tokenizer(models.WordLevel({SOT: 2, EOT: 1, "a": 0}, unk_token="a")).save(str(broken))
    with pytest.raises(BundleError, match="must have the largest id 2, got 1"):
        Tokenizer.from_file(broken)


# --- embedder


def test_embeds_in_batches_and_only_what_is_new(clip: Tokenizer) -> None:
    encode = FakeEncoder()
    text = embedder(clip, encode, batch=16)
    names = [f"object {index}" for index in range(40)]
    first = text.embed(names)
    assert first.shape == (40, 2, 8) and first.dtype == np.float32 and first.flags.c_contiguous
    assert encode.batches == [16, 16, 8]
    again = text.embed(["new", *reversed(names), "new"])
    assert encode.batches == [16, 16, 8, 1]
    np.testing.assert_array_equal(again[1:41], first[::-1])
    np.testing.assert_array_equal(again[0], again[41])


def test_prompt_is_what_is_encoded(clip: Tokenizer) -> None:
    encode = FakeEncoder()
    expected = encode(clip.encode(["A photo of a Traffic light in the scene"]))
    np.testing.assert_array_equal(embedder(clip, encode).embed(["Traffic light"]), expected)
    # Cleaned once, as in the official code: twice would turn this entity into "&".
    assert embedder(clip, encode).prompt("{} &amp;amp;amp;") == "A photo of a {} &amp;amp;amp; in the scene"


def test_first_synonym(clip: Tokenizer) -> None:
    encode = FakeEncoder()
    short, whole = embedder(clip, encode, first_synonym=True), embedder(clip, encode)
    assert short.prompt("chest, bureau, dresser") == "A photo of a chest in the scene"
    assert whole.prompt("chest, bureau") == "A photo of a chest, bureau in the scene"
    np.testing.assert_array_equal(short.embed(["chest, bureau"]), whole.embed(["chest"]))


def test_disk_cache_serves_another_process(clip: Tokenizer, tmp_path: Path) -> None:
    encode = FakeEncoder()
    first = embedder(clip, encode, tmp_path / "made" / "cache").embed(["wall", "floor"])
    assert encode.batches == [2]
    second = embedder(clip, encode, tmp_path / "made" / "cache").embed(["floor", "wall"])
    assert encode.batches == [2]
    np.testing.assert_array_equal(second, first[::-1])
    embedder(clip, encode, tmp_path / "made" / "cache", cache_key="another encoder").embed(["wall"])
    embedder(clip, encode, tmp_path / "made" / "cache", prompt_template="a {}").embed(["wall"])
    assert encode.batches == [2, 1, 1]


@pytest.mark.parametrize("damage", ["empty", "text", "half", "another prompt", "wrong shape", "nan"])
def test_damaged_cache_file_is_ignored_and_mended(clip: Tokenizer, tmp_path: Path, damage: str) -> None:
    encode = FakeEncoder()
    good = embedder(clip, encode, tmp_path).embed(["wall"])
    (file,) = tmp_path.iterdir()
    with np.load(file) as stored:
        content = dict(stored)
    changes = {
        "another prompt": {"prompt": "x"},
        "wrong shape": {"embedding": np.zeros(8, np.float32)},
        "nan": {"embedding": np.full((2, 8), np.nan, np.float32)},
    }
    if damage in changes:
        np.savez(file, **{**content, **changes[damage]})  # type: ignore[arg-type]
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "text": b"not an archive", "half": whole[: len(whole) // 2]}[damage])
    np.testing.assert_array_equal(embedder(clip, encode, tmp_path).embed(["wall"]), good)
    assert encode.batches == [1, 1]
    np.testing.assert_array_equal(embedder(clip, encode, tmp_path).embed(["wall"]), good)
    assert encode.batches == [1, 1]


def test_unwritable_cache_is_not_fatal(clip: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert embedder(clip, FakeEncoder(), tmp_path / "file" / "cache").embed(["wall"]).shape == (1, 2, 8)


def test_writers_at_the_same_time_leave_whole_files(clip: Tokenizer, tmp_path: Path) -> None:
    names = [f"object {index}" for index in range(12)]
    threads = [threading.Thread(target=embedder(clip, FakeEncoder(), tmp_path).embed, args=(names,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 12  # no temporary file stays
    encode = FakeEncoder()
    embedder(clip, encode, tmp_path).embed(names)
    assert encode.batches == []


def test_thousand_classes(clip: Tokenizer, tmp_path: Path) -> None:
    encode = FakeEncoder()
    names = [f"object {index}" for index in range(1000)]
    assert embedder(clip, encode, tmp_path).embed(names).shape == (1000, 2, 8)
    embedder(clip, encode, tmp_path).embed(names)
    assert sum(encode.batches) == 1000


def test_too_long_prompt_names_the_class_before_anything_is_encoded(clip: Tokenizer) -> None:
    encode = FakeEncoder()
    name = "very " * 80 + "long"
    with pytest.raises(InputError, match=r"'very very .*a prompt of 90 tokens.*takes 77; use a shorter name"):
        embedder(clip, encode).embed(["wall", name])
    assert encode.batches == []


def test_unknown_word_names_the_class() -> None:
    words = ["a", "photo", "of", "in", "the", "scene", "cat"]
    text = embedder(small_tokenizer(words), FakeEncoder())
    with pytest.raises(InputError, match=r"class 'red panda': the tokenizer does not know 'red', 'panda'"):
        text.embed(["red panda"])


def test_other_mistakes(clip: Tokenizer) -> None:
    with pytest.raises(InputError, match="no class names given"):
        embedder(clip, FakeEncoder()).embed([])
    for template in ("no place", "{} twice {}"):
        with pytest.raises(InputError, match=r"must hold \{\} once"):
            embedder(clip, FakeEncoder(), prompt_template=template)
    broken = TextEmbedder(
        clip,
        lambda ids: np.zeros((len(ids), 8), np.float32),
        prompt_template=PROMPT,
        first_synonym=False,
        cache_key="k",
        cache_dir=None,
    )
    with pytest.raises(EngineError, match=r"gave shape \(1, 8\) for 1 prompts, expected \(1, 2, C\)"):
        broken.embed(["wall"])


def test_save_and_preload(clip: Tokenizer, tmp_path: Path) -> None:
    encode, names = FakeEncoder(), ["wall", "красный автомобиль", "chest, bureau"]
    saved = embedder(clip, encode)
    saved.save(tmp_path / "mine.npz", names)
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as stored:
        assert stored["names"].tolist() == names
        assert stored["embeddings"].shape == (3, 2, 8)
        assert (str(stored["prompt"]), str(stored["cache_key"])) == (PROMPT, "key")
    encode.batches.clear()
    fresh = embedder(clip, encode)
    assert fresh.preload(tmp_path / "mine.npz") == 3
    np.testing.assert_array_equal(fresh.embed(names), saved.embed(names))
    assert encode.batches == []
    for changes in ({"cache_key": "other"}, {"prompt_template": "a {}"}, {"first_synonym": True}):
        assert embedder(clip, encode, **changes).preload(tmp_path / "mine.npz") == 0


def test_save_and_preload_failures(clip: Tokenizer, tmp_path: Path) -> None:
    text = embedder(clip, FakeEncoder())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write text embeddings to"):
        text.save(tmp_path / "file" / "mine.npz", ["wall"])
    for missing in (tmp_path / "absent.npz", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"cannot read text embeddings .*rebuild the bundle"):
            text.preload(missing)
    text.save(tmp_path / "mine.npz", ["wall"])
    with np.load(tmp_path / "mine.npz") as stored:
        content = dict(stored)
    np.savez(tmp_path / "mine.npz", **{**content, "names": np.array(["wall", "floor"])})  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"have shape \(1, 2, 8\), expected \(2, 2, C\)"):
        text.preload(tmp_path / "mine.npz")
