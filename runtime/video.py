"""Where frames come from (photo, folder, video, stream, camera) and where pictures go."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, OutputError
from runtime.files import atomic_file

Pixels = npt.NDArray[np.uint8]
Kind = Literal["photo", "folder", "video", "stream"]

_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jfif"}
_WRITTEN_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_DEFAULT_FPS = 25.0  # of a stream or file that does not say


@dataclass(frozen=True)
class Frame:
    """One picture: `image` is (H, W, 3) uint8 RGB; `name` is a file name, for video frames without suffix."""

    name: str
    image: Pixels


@dataclass
class Source:
    """An iterable of `Frame`; made by `open_source`.

    Attributes:
        kind: "photo", "folder", "video" or "stream" (a URL or a camera; it can be walked through once).
        path: where the frames come from.
        length: number of frames, None when unknown; a video's own header, which may be off by a few.
        fps: frames a second, None for photos and for a stream that does not say.
    """

    kind: Kind
    path: Path | str | int
    length: int | None = None
    fps: float | None = None
    _photos: list[Path] = field(default_factory=list, repr=False)
    _capture: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"the number of frames of {self.path} is not known")
        return self.length

    def __bool__(self) -> bool:
        return True  # without this, `if source` would ask for a length that a stream does not have

    def __iter__(self) -> Iterator[Frame]:
        if self._photos:
            return (Frame(photo.name, read_photo(photo)) for photo in self._photos)
        return self._video_frames()

    @property
    def name(self) -> str:
        """A file name without suffix for the whole source."""
        if isinstance(self.path, Path):
            return self.path.stem
        return "camera" if isinstance(self.path, int) else "stream"

    def _video_frames(self) -> Iterator[Frame]:
        import cv2

        capture = self._capture if self.kind == "stream" else _open_capture(self.path)
        try:
            index = 0
            while True:
                found, image = capture.read()
                if not found:
                    break
                yield Frame(f"{self.name}_{index:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                index += 1
        finally:
            capture.release()
        if index == 0:
            raise InputError(f"no frame can be read from {self.path}; is it a video that a player shows?")


def open_source(path: str | Path | int) -> Source:
    """Opens a photo, a folder of photos (sorted by name), a video file, a stream URL or a camera number.

    Raises:
        InputError: the file does not exist, the folder has no photos, or the video cannot be opened;
            while iterating, a photo that cannot be read.
    """
    if isinstance(path, str) and path.isdecimal() and not Path(path).exists():
        path = int(path)
    if isinstance(path, int) or "://" in str(path):
        where = path if isinstance(path, int) else str(path)
        capture = _open_capture(where)
        return Source("stream", where, fps=_read_fps(capture), _capture=capture)
    path = Path(path).expanduser()
    if path.is_dir():
        photos = sorted(entry for entry in path.iterdir() if _is_photo(entry))
        if not photos:
            raise InputError(f"folder {path} has no photos ({', '.join(sorted(_PHOTO_SUFFIXES))})")
        return Source("folder", path, length=len(photos), _photos=photos)
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a photo, a folder of photos, a video or a stream URL")
    if path.suffix.lower() in _PHOTO_SUFFIXES:
        return Source("photo", path, length=1, _photos=[path])
    import cv2

    capture = _open_capture(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    fps = _read_fps(capture)
    capture.release()
    return Source("video", path, length=count if count > 0 else None, fps=fps)


def read_photo(path: Path | str) -> Pixels:
    """(H, W, 3) uint8 RGB, turned upright by its EXIF tag; 16 bits keep their upper 8, alpha is dropped.

    Raises:
        InputError: the file is missing, damaged, or no 8-bit or 16-bit picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16-bit greyscale; convert("RGB") would clip it at 255
                grey = np.clip(np.asarray(picture, dtype=np.int64), 0, 65535) >> 8
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            if picture.mode == "F":
                raise InputError(f"photo {path} holds 32-bit floats; expected 8 or 16 bits, convert it first")
            return np.array(picture.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"photo {path} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"photo {path} cannot be read ({error}); is it a whole picture file?") from error


class Sink:
    """Writes pictures to where `open_sink` found that they can go; use it as a context manager.

    A file appears under its name only when it is complete; after an exception none is left half-written.
    """

    def __init__(self, kind: Kind, target: Path, fps: float | None = None) -> None:
        self.target = target
        self._kind = kind
        self._fps = fps or _DEFAULT_FPS
        self._files = contextlib.ExitStack()
        self._writer: Any = None
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> Sink:
        return self

    def write(self, name: str, image: Pixels) -> None:
        """Takes one picture, (H, W, 3) uint8 RGB; `name` is its frame's name.

        Raises:
            InputError: the picture is no uint8 RGB, or a video frame's size differs from the first one's.
            OutputError: the picture cannot be written.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        if self._kind == "photo":
            _write_photo(self.target, image)
        elif self._kind == "folder":
            suffix = "" if Path(name).suffix.lower() in _WRITTEN_SUFFIXES else ".png"
            _write_photo(self.target / (name + suffix), image)
        else:
            self._write_video_frame(image)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        # A live stream has no end but Ctrl-C, which therefore keeps what was recorded.
        if kind is KeyboardInterrupt and self._kind == "stream":
            kind = error = trace = None
        try:
            self._files.__exit__(kind, error, trace)
        except OSError as problem:
            raise OutputError(f"cannot write {self.target}: {problem.strerror}") from problem

    def _write_video_frame(self, image: Pixels) -> None:
        import cv2

        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            temporary = self._files.enter_context(atomic_file(self.target))
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(temporary), codec, self._fps, size)
            self._size = size
            if not self._writer.isOpened():
                raise OutputError(f"OpenCV cannot write an mp4 video of {size[0]}x{size[1]} to {self.target}")
        if size != self._size:
            # OpenCV would leave such a frame out without a word.
            raise InputError(f"video frames must keep their size: first {self._size}, now {size} (width, height)")
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))


def open_sink(out: Path | str, source: Source) -> Sink:
    """Decides what is written for `source`, and makes sure that it can be written, before any work starts.

    A photo becomes one .png or .jpg; a folder becomes a folder with the same file names; a video or stream
    becomes one .mp4. An existing folder as `out` takes the photo or video under the source's own name.

    Raises:
        OutputError: a wrong suffix, a place that cannot be written, or one that would overwrite the source.
    """
    target = Path(out).expanduser()
    wanted = {"photo": (".png", ".jpg", ".jpeg"), "folder": ()}.get(source.kind, (".mp4",))
    if wanted and target.is_dir():
        target = target / f"{source.name}{wanted[0]}"
    if wanted and target.suffix.lower() not in wanted:
        raise OutputError(f"a {source.kind} is written as {' or '.join(wanted)}, got {target}")
    if isinstance(source.path, Path) and target.exists() and target.samefile(source.path):
        raise OutputError(f"{target} is the source itself; choose another place for the results")
    folder = target.parent if wanted else target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}; choose another place") from error
    return Sink(source.kind, target, source.fps)


def _write_photo(path: Path, image: Pixels) -> None:
    from PIL import Image

    try:
        with atomic_file(path) as temporary:
            Image.fromarray(image).save(temporary, quality=95)  # PNG and BMP ignore the quality
    except OSError as error:
        raise OutputError(f"cannot write picture {path}: {error.strerror or error}") from error


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in _PHOTO_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _open_capture(path: Path | str | int) -> Any:
    import cv2

    capture = cv2.VideoCapture(path if isinstance(path, int) else str(path))
    if not capture.isOpened():
        capture.release()
        kind = "camera" if isinstance(path, int) else "stream" if isinstance(path, str) else "video"
        raise InputError(f"{kind} {path} cannot be opened; is it there, and in a format that OpenCV reads?")
    return capture


def _read_fps(capture: Any) -> float | None:
    import cv2

    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 1.0 <= fps <= 1000.0 else None  # cameras answer 0, or a clock rate
