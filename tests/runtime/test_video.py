"""Sources: every kind of picture as uint8 RGB. Sinks: whole files or none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError, OutputError
from runtime.video import Source, atomic_file, open_sink, open_source, read_photo


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    """Red grows to the right, green downwards; blue is 40: channel or axis mix-ups show."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[..., 0] = np.linspace(0, 250, width).astype(np.uint8)
    image[..., 1] = np.linspace(0, 250, height).astype(np.uint8)[:, None]
    return image


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """Ten frames, 64x48, 12 frames a second; blue tells the frame."""
    path = tmp_path / "movie.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (64, 48))
    for index in range(10):
        image = gradient()
        image[..., 2] = 20 * index
        writer.write(image[..., ::-1].copy())
    writer.release()
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub.png").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "c.gif"):
        Image.fromarray(gradient()).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    (folder / "._a.jpg").write_bytes(b"macOS leaves these")
    return folder


# --- atomic_file


def test_atomic_file(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old" and temporary.parent == tmp_path and temporary.suffix == ".txt"
        raise RuntimeError
    assert target.read_text() == "old"
    with atomic_file(target) as first, atomic_file(target) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


# --- photos


def test_photo(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    source = open_source(str(tmp_path / "a.png"))
    assert (source.kind, source.name, len(source), source.fps) == ("photo", "a", 1, None)
    (frame,) = source
    assert frame.name == "a.png" and frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
    np.testing.assert_array_equal(frame.image, gradient())
    assert len(list(source)) == 1  # can be walked through again


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "I"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = gradient()[..., 0]
    file = tmp_path / ("a.tif" if mode in ("CMYK", "I") else "a.png")
    if mode in ("I;16", "I"):
        Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257).save(file)
    else:
        Image.fromarray(gradient()).convert(mode).save(file)
    image = read_photo(file)
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    if mode in ("I;16", "I"):
        np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))
    if mode == "RGBA":
        np.testing.assert_array_equal(image, gradient())


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), np.rot90(gradient(), -1))


def test_damaged_photos(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"photo .*a\.png cannot be read .*is it a whole picture file"):
        list(open_source(file))
    file.write_text("no picture")
    with pytest.raises(InputError, match="cannot be read"):
        read_photo(file)
    with pytest.raises(InputError, match=r"photo .*absent\.png does not exist"):
        read_photo(tmp_path / "absent.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match="holds 32-bit floats; expected 8 or 16 bits"):
        read_photo(tmp_path / "f.tif")


def test_folder(photos: Path, tmp_path: Path) -> None:
    source = open_source(photos)
    assert (source.kind, source.length) == ("folder", 3)
    assert [frame.name for frame in source] == ["a.jpg", "b.PNG", "c.gif"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"folder .*empty has no photos \(\.bmp"):
        open_source(tmp_path / "empty")


# --- videos


def test_video(movie: Path) -> None:
    source = open_source(movie)
    assert (source.kind, source.length, source.fps, source.name) == ("video", 10, 12.0, "movie")
    frames = list(source)
    assert [frame.name for frame in frames[:2]] == ["movie_000000", "movie_000001"] and len(frames) == 10
    for index, frame in enumerate(frames):
        difference = np.abs(frame.image[..., :2].astype(int) - gradient()[..., :2])
        assert frame.image.shape == (48, 64, 3) and difference.mean() < 12
        assert abs(int(frame.image[..., 2].mean()) - 20 * index) < 12
    assert len(list(source)) == 10


def test_stream_of_unknown_length(movie: Path) -> None:
    source = open_source(f"file://{movie}")
    assert (source.kind, source.length, source.name, bool(source)) == ("stream", None, "stream", True)
    with pytest.raises(TypeError, match=r"number of frames of file:.* is not known"):
        len(source)
    assert len(list(source)) == 10


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.mp4 does not exist; expected a photo, a folder"):
        open_source(tmp_path / "absent.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"video .*broken\.mp4 cannot be opened"):
        open_source(tmp_path / "broken.mp4")
    with pytest.raises(InputError, match="camera 97 cannot be opened"):
        open_source("97")
    with pytest.raises(InputError, match="stream file:///absent cannot be opened"):
        open_source("file:///absent")


# --- sinks


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("out", ["new/deep/result.png", "result.JPG"])
def test_photo_sink(tmp_path: Path, photos: Path, out: str) -> None:
    source = open_source(photos / "b.PNG")
    with open_sink(tmp_path / out, source) as sink:
        for frame in source:
            sink.write(frame.name, frame.image)
    assert np.abs(read_photo(tmp_path / out).astype(int) - gradient()).mean() < 3
    assert len(names((tmp_path / out).parent)) <= 2


def test_photo_into_an_existing_folder(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "out").mkdir()
    with open_sink(tmp_path / "out", open_source(photos / "a.jpg")) as sink:
        sink.write("a.jpg", gradient())
    assert names(tmp_path / "out") == ["a.png"]


def test_folder_sink_keeps_names_and_what_was_finished(tmp_path: Path, photos: Path) -> None:
    source = open_source(photos)
    with open_sink(tmp_path / "out", source) as sink:
        for frame in source:
            sink.write(frame.name, frame.image)
    assert names(tmp_path / "out") == ["a.jpg", "b.PNG", "c.gif.png"]
    with pytest.raises(RuntimeError), open_sink(tmp_path / "half", source) as sink:
        sink.write("a.jpg", gradient())
        raise RuntimeError
    assert names(tmp_path / "half") == ["a.jpg"]


def test_video_round_trip(movie: Path, tmp_path: Path) -> None:
    source = open_source(movie)
    target = tmp_path / "out" / "result.mp4"
    with open_sink(target, source) as sink:
        for frame in source:
            sink.write(frame.name, frame.image)
            assert not target.exists()  # appears when it is complete
    assert names(target.parent) == ["result.mp4"]
    result = open_source(target)
    assert (result.length, result.fps) == (10, 12.0)
    for before, after in zip(source, result, strict=True):
        assert np.abs(before.image.astype(int) - after.image).mean() < 8


def test_failed_video_leaves_the_old_file(movie: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "result.mp4"
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(RuntimeError), open_sink(target, open_source(movie)) as sink:
        sink.write("x", gradient())
        raise RuntimeError
    assert names(target.parent) == ["result.mp4"] and target.read_text() == "old"
    with open_sink(target, open_source(movie)):
        pass  # no frame came: nothing is written
    assert target.read_text() == "old"


def test_interrupt_keeps_a_stream_but_not_half_a_video(movie: Path, tmp_path: Path) -> None:
    for kind, kept in (("stream", ["result.mp4"]), ("video", [])):
        folder = tmp_path / kind
        source = Source(kind, movie, fps=12.0)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt), open_sink(folder / "result.mp4", source) as sink:
            sink.write("x", gradient())
            raise KeyboardInterrupt
        assert names(folder) == kept


def test_frames_that_do_not_fit(movie: Path, tmp_path: Path) -> None:
    source = open_source(movie)
    with (
        pytest.raises(InputError, match=r"keep their size: first \(64, 48\), now \(48, 64\)"),
        open_sink(tmp_path / "result.mp4", source) as sink,
    ):
        sink.write("x", gradient())
        sink.write("y", gradient(64, 48))
    for bad in (gradient()[..., 0], gradient().astype(float)):
        with (
            pytest.raises(InputError, match=r"must be \(H, W, 3\) uint8 RGB, got"),
            open_sink(tmp_path / "result.mp4", source) as sink,
        ):
            sink.write("x", bad)
    assert not (tmp_path / "result.mp4").exists()


def test_wrong_targets_are_refused_before_any_work(tmp_path: Path, movie: Path, photos: Path) -> None:
    video, folder, photo = open_source(movie), open_source(photos), open_source(photos / "b.PNG")
    (tmp_path / "file").touch()
    for source, out in ((video, "file/a.mp4"), (folder, "file/out"), (photo, "file/a.png"), (folder, "file")):
        with pytest.raises(OutputError, match=r"cannot write to folder .*file.*; choose another place"):
            open_sink(tmp_path / out, source)
    with pytest.raises(OutputError, match=r"a video is written as \.mp4, got .*a\.avi"):
        open_sink(tmp_path / "a.avi", video)
    with pytest.raises(OutputError, match=r"a photo is written as \.png or \.jpg or \.jpeg, got"):
        open_sink(tmp_path / "a.txt", photo)
    for source in (video, folder, photo):
        with pytest.raises(OutputError, match="is the source itself"):
            open_sink(source.path, source)  # type: ignore[arg-type]


def test_write_that_fails_later(tmp_path: Path, photos: Path) -> None:
    sink = open_sink(tmp_path / "out" / "a.png", open_source(photos / "a.jpg"))
    (tmp_path / "out").rmdir()
    with pytest.raises(OutputError, match="cannot write picture"):
        sink.write("a.jpg", gradient())
