"""The public face: load a bundle, name classes, segment images."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from runtime.bundle import TOKENIZER, Bundle
from runtime.engines import CPU_BACKENDS, Backend, backend_for, choose_backend, open_pipeline, open_stage
from runtime.errors import EngineError, InputError
from runtime.files import cache_dir
from runtime.images import as_pixels, in_gpu_memory
from runtime.live import newest
from runtime.pipeline import FramePipeline, PipelineResult
from runtime.reuse import Reuse
from runtime.segmentation import DeviceSegmentation, Segmentation
from runtime.text import TextEmbedder, Tokenizer
from runtime.video import open_source
from runtime.vocab import read_classes

TEXT_STAGE = "text_encoder"
DEFAULT_CACHE = cache_dir("text")
WORKER = "segmenter"  # name of the threads behind `submit`
Classes = Sequence[str] | str | Path
Named = tuple[npt.NDArray[np.float32] | None, tuple[str, ...]]  # embeddings (K, 2, C) and the names that they stand for


class Segmenter:
    """Segments images into named classes. Calls may come from any thread: on a CPU they run one after the other, on a
    GPU two frames a worker are in flight.

    Example:
        >>> from runtime import Segmenter
        >>> segmenter = Segmenter.load("bundles/tiny", classes=["wall", "floor", "red mug"])
        >>> result = segmenter(image)          # (H, W, 3) uint8
        >>> result.labels, result.overlay(image)
    """

    def __init__(self, bundle: Bundle, pipeline: FramePipeline, embedder: TextEmbedder, color: str) -> None:
        self.bundle = bundle
        self._pipeline = pipeline
        self._embedder = embedder
        self._color = check_color(color)
        self._named: Named = None, ()
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._turns = threading.BoundedSemaphore(pipeline.in_flight)
        self._queue: ThreadPoolExecutor | None = None
        self._accepts = True
        self._closed = False

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        classes: Classes | None = None,
        *,
        device: str = "auto",
        backend: str = "auto",
        precision: str | None = None,
        color: str = "rgb",
        threads: int | None = None,
        max_memory: int | None = None,
        shortlist: int = 0,
        workers: int = 1,
        cache_dir: Path | None = DEFAULT_CACHE,
    ) -> Segmenter:
        """Opens a bundle, verifies its checksums and loads its engines.

        Args:
            classes: As for `set_classes`; may be set later.
            device: "auto" or "cpu".
            backend: "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx", or "auto": the
                engines that were built for this machine's GPU, else ONNX Runtime or OpenVINO on the CPU.
            precision: "fp32", "fp16" or "bf16"; None: the backend's default.
            color: Channel order of the images to come, "rgb" or "bgr".
            threads: CPU threads for each engine; None: the library's choice.
            max_memory: Bytes of the GPU that frames may use beside the weights; None: nearly all that is free.
            shortlist: Refine only classes that are among this many with the largest cosine at some pixel: faster with
                long class lists, but not the same result; `benchmarks/accuracy.py --shortlist` says what it costs.
                0: refine all.
            workers: Frames that compute side by side on a GPU, each with memory of its own beside the weights.
            cache_dir: Where text embeddings are kept between runs; None: nowhere.

        Raises:
            BundleError: the bundle is incomplete, altered, or of a newer schema.
            EngineError: the engine library is missing or refuses a graph.
            InputError: an option or class list that cannot be used.
        """
        if device not in ("auto", "cpu"):
            raise InputError(f"device is {device!r}; expected auto or cpu")
        check_color(color)
        names = None if classes is None else read_classes(classes)
        opened = Bundle.open(bundle)
        manifest = opened.manifest
        if manifest.random_weights:
            warnings.warn(
                f"{opened.root} was built with random weights: it shows shapes and speed, its labels mean nothing",
                stacklevel=2,
            )
        choose = choose_backend if device == "cpu" else partial(backend_for, opened)
        library, chosen = choose(backend, precision)
        if device == "cpu" and library not in CPU_BACKENDS:
            raise InputError(f"backend {library} does not run on device cpu; expected {' or '.join(CPU_BACKENDS)}")
        stages = [stage.name for stage in manifest.stages if stage.name != TEXT_STAGE]
        pipeline = open_pipeline(opened, stages, library, chosen, threads, max_memory, shortlist, workers)
        embedder = text_embedder(opened, library, threads, cache_dir)
        for vocabulary in sorted(name for name in manifest.files if name.startswith("text/")):
            opened.verify(vocabulary)
            embedder.preload(opened.root / vocabulary)
        segmenter = cls(opened, pipeline, embedder, color)
        if names is not None:
            segmenter.set_classes(names)
        return segmenter

    @property
    def classes(self) -> tuple[str, ...]:
        return self._named[1]

    @property
    def precision(self) -> dict[str, str]:
        """What every stage really computes in, read back from its engine."""
        return {name: engine.precision for name, engine in self._pipeline.engines.items()}

    def set_classes(self, classes: Classes) -> None:
        """Changes what is looked for. Only names never seen before are encoded; no engine is rebuilt.

        Args:
            classes: A list of names, "a, b, c", or a .txt or .json file.

        Raises:
            InputError: no names, a special token in a name, or a name longer than the text encoder takes.
            EngineError: the GPU has no memory for so many.
        """
        names = read_classes(classes)
        with self._lock:
            self._check_open()
            text = self._embedder.embed(names)
            self._pipeline.prepare(len(names))
            self._named = text, tuple(names)  # frames that run keep theirs

    @overload
    def __call__(self, image: list[Any], *, color: str | None = None, scores: bool = True) -> list[Segmentation]: ...

    @overload
    def __call__(self, image: Any, *, color: str | None = None, scores: bool = True) -> Segmentation: ...

    def __call__(
        self, image: Any, *, color: str | None = None, scores: bool = True
    ) -> Segmentation | list[Segmentation]:
        """Segments one image, or each of a list.

        Args:
            image: (H, W, 3) uint8 numpy array of any strides, PIL image, or DLPack tensor; on a GPU also an array in
                its memory (torch, CuPy, Numba, PyCUDA), which is not copied; or a list.
            color: "rgb" or "bgr"; None: as loaded. PIL images are always RGB.
            scores: Whether to compute `Segmentation.scores`.

        Raises:
            InputError: the image has another type, dtype, rank or channel count, or no classes are set.
        """
        result: Segmentation | list[Segmentation] = self._call(image, color, scores, self._named)
        return result

    def _call(self, image: Any, color: str | None, scores: bool, named: Named) -> Any:
        if isinstance(image, list):
            return list(self._in_flight(image, color, scores, lambda: named))
        return self._segment(image, color, scores, named)

    def on_device(self, image: Any, *, color: str | None = None) -> DeviceSegmentation:
        """As a call, but the labels stay in GPU memory, where torch, CuPy and others take them without a copy.

        Raises:
            InputError: as a call, or the engines do not run on a GPU.
        """
        if not self._pipeline.on_gpu:
            raise InputError("labels stay on the GPU only where the engines run there; call the segmenter instead")
        named = self._named
        result = self._run(image, color, False, named, on_device=True)
        return DeviceSegmentation(result.labels, named[1], result.timings)

    def _segment(
        self, image: Any, color: str | None, scores: bool, named: Named, reuse: Reuse | None = None
    ) -> Segmentation:
        result = self._run(image, color, scores, named, reuse=reuse)
        return Segmentation(result.labels, named[1], result.timings, result.scores)

    def _run(self, image: Any, color: str | None, scores: bool, named: Named, **options: Any) -> PipelineResult:
        order = "rgb" if hasattr(image, "getbands") else check_color(color or self._color)
        pixels = image if self._pipeline.on_gpu and in_gpu_memory(image) else as_pixels(image)
        with self._turns:
            self._check_open()
            if named[0] is None:
                raise InputError("no classes are set; call set_classes([...]) or load with classes=[...]")
            return self._pipeline(pixels, named[0], color=order, scores=scores, **options)

    def submit(self, image: Any, *, color: str | None = None, scores: bool = True) -> Future[Segmentation]:
        """Queues one image, with the classes of this moment, and returns at once. Frames begin in their order."""
        return self._submit(image, color, scores, self._named)

    def _submit(self, image: Any, color: str | None, scores: bool, named: Named) -> Future[Segmentation]:
        with self._lock:
            if not self._accepts:
                raise closed_error()
            if self._queue is None:
                self._queue = ThreadPoolExecutor(self._pipeline.in_flight, thread_name_prefix=WORKER)
            return self._queue.submit(self._call, image, color, scores, named)

    def _in_flight(
        self, images: Iterable[Any], color: str | None, scores: bool, named: Callable[[], Named]
    ) -> Iterator[Segmentation]:
        """In their order, as many at once as the device takes; `named` is asked for each."""
        queued = threading.current_thread().name.startswith(WORKER)  # a list among the images of `submit`
        if queued or self._pipeline.in_flight == 1:
            yield from (self._segment(image, color, scores, named()) for image in images)
            return
        begun: deque[Future[Segmentation]] = deque()
        for image in images:
            begun.append(self._submit(image, color, scores, named()))
            if len(begun) == self._pipeline.in_flight:
                yield begun.popleft().result()
        yield from (future.result() for future in begun)

    def stream(
        self,
        source: str | Path | int | Iterable[Any],
        *,
        drop: bool = False,
        scores: bool = False,
        reuse_global: int = 1,
        crops: str = "all",
    ) -> Iterator[Segmentation]:
        """Segments frame after frame.

        Args:
            source: A photo, folder, video file, stream URL or camera number, or an iterable of images.
            drop: Skip frames that arrive while one is being segmented, as a live camera needs.
            reuse_global: Look at the whole image in every n-th segmented frame only; 1: in all of them.
            crops: "changed": look again only at crops whose pixels changed, see `runtime.reuse`; "all": at all. Both
                are faster and not the same result; `benchmarks/video.py` says what they cost.

        Raises:
            InputError: other values; at once. What the source raises comes with its frames.
        """
        reuse = Reuse(self.bundle.manifest.pipeline.geometry, reuse_global=reuse_global, crops=crops)
        return self._stream(source, drop, scores, reuse if (reuse_global, crops) != (1, "all") else None)

    def _stream(
        self, source: str | Path | int | Iterable[Any], drop: bool, scores: bool, reuse: Reuse | None
    ) -> Iterator[Segmentation]:
        if isinstance(source, (str, Path, int)):
            frames: Iterable[Any] = (frame.image for frame in open_source(source))
            order = "rgb"
        else:
            frames, order = source, self._color
        if drop or reuse is not None:  # nothing must lie in a queue, or each frame depends on the last
            for frame in newest(frames) if drop else frames:
                yield self._segment(frame, order, scores, self._named, reuse)
        else:
            yield from self._in_flight(frames, order, scores, lambda: self._named)

    def close(self) -> None:
        """Waits for queued images and frees the engines. Later calls raise EngineError."""
        if os.getpid() != self._process:  # they are the parent's
            return
        with self._lock:
            self._accepts = False
            queue, self._queue = self._queue, None
        if queue is not None:
            # Called back from a queued image, there is no waiting for that image.
            queue.shutdown(wait=not threading.current_thread().name.startswith(WORKER))
        for _ in range(self._pipeline.in_flight):  # other threads' frames come to their end
            self._turns.acquire()
        with self._lock:
            self._closed = True
            self._pipeline.close()
        self._turns.release(self._pipeline.in_flight)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()
        if os.getpid() != self._process:
            raise EngineError(
                "this Segmenter was loaded before a fork, which neither CUDA nor the engines' threads survive; load it "
                "in the child"
            )


def closed_error() -> EngineError:
    return EngineError("this Segmenter is closed; load the bundle again")


def check_color(color: str) -> str:
    if color not in ("rgb", "bgr"):
        raise InputError(f"color is {color!r}; expected 'rgb' or 'bgr'")
    return color


def text_embedder(bundle: Bundle, backend: Backend, threads: int | None, cache_dir: Path | None) -> TextEmbedder:
    """Embeds class names with the bundle's text encoder, in fp32 whatever the other stages run in.

    Every pixel is compared with these vectors and they are made once: exactness is free, and one cache serves all.
    """
    prompting = bundle.manifest.prompting

    def encode(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        # Opened for new names only and closed again: it is the largest stage and seldom needed.
        return open_stage(bundle, TEXT_STAGE, backend, "fp32", threads)({"token_ids": ids})["text"]

    return TextEmbedder(
        Tokenizer.from_file(bundle.tokenizer(), prompting.context_length),
        encode,
        prompt_template=prompting.template,
        first_synonym=prompting.first_synonym,
        cache_key=text_fingerprint(bundle),
        cache_dir=cache_dir,
        batch=64,
    )


def text_fingerprint(bundle: Bundle) -> str:
    """Changes whenever an embedding could: hash of the text encoder's graph, its weights and the tokenizer."""
    graph = bundle.stage(TEXT_STAGE).onnx["fp32"]
    weights = [f"{graph}.data"] if f"{graph}.data" in bundle.manifest.files else []
    return bundle.fingerprint(graph, *weights, TOKENIZER)
