# make demo   segments a picture; make test   runs all tests. Both start from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLASSES ?= table, wall, floor, green cube, yellow cone, cyan cone, white cone, red star, black star, white star, black ring
PICTURE ?= export/weights/tiny/example.jpg
KERNEL_SOURCES = $(shell git ls-files 'kernels/*.cpp' 'kernels/*.hpp' 'kernels/*.cuh' 'kernels/*.cu')
FORMATTED = $(KERNEL_SOURCES) $(shell git ls-files 'tests/kernels/*.cpp' 'tests/kernels/*.h')

# The whole image, shrunk to the size of a crop.
ONE_PASS = --set geometry.image_size=192 --set geometry.crop_size=192 --set geometry.stride=192 --set refinement.window_size=12

.PHONY: demo test test-slow card engines-rtx sanitize lint format clean

demo: $(READY)
	$(BIN)/python export/build_engines.py
	$(BIN)/python -m runtime segment $(PICTURE) --classes "$(CLASSES)" --bundle bundles/tiny -o out/demo.png

test: $(READY)
	$(BIN)/python -m pytest -q

# Minutes and gigabytes: full-size models.
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

# The numbers of the model card: 32 scenes that the tests repeat, then the whole comparison.
card: $(READY)
	$(BIN)/python export/build_engines.py --engine fp16
	$(BIN)/python export/build_engines.py --set geometry.stride=64 --out bundles/tiny-3x3
	$(BIN)/python export/build_engines.py --refinement none --out bundles/tiny-training-free
	$(BIN)/python export/build_engines.py $(ONE_PASS) --out bundles/tiny-192px
	$(BIN)/python benchmarks/accuracy.py --engine fp32 --no-torch --scenes 32 --out out/card
	cp out/card/*/tiny-accuracy.json export/weights/tiny/scores.json
	$(BIN)/python benchmarks/accuracy.py --scenes 64 --views both --views crops --views full
	$(BIN)/python benchmarks/accuracy.py --scenes 128 --engine fp32 --no-torch --bundle bundles/tiny --bundle bundles/tiny-3x3 \
		--bundle bundles/tiny-training-free --bundle bundles/tiny-192px --out out/card
	for split in val hard; do $(BIN)/python benchmarks/accuracy.py --split $$split --scenes 128 --engine fp32 --no-torch \
		--out out/card || exit 1; done
	$(BIN)/python benchmarks/accuracy.py --scenes 256 --engine fp32 --no-torch --views both --views crops --views full --out out/views

# TensorRT-RTX engines, on any machine: of the shipped weights, and of the full-size model with random ones (half an
# hour for its export, which is kept).
RTX := --backend tensorrt-rtx --target sm80 --target sm86 --target sm89 --target sm120
engines-rtx: $(READY)
	$(BIN)/python export/build_engines.py --engine fp16 --out bundles/tiny-fp16 $(RTX)
	test -f bundles/vitl-random/manifest.json || \
	    $(BIN)/python export/build_engines.py --preset vitl --random-weights --engine fp16 --out bundles/vitl-random
	$(BIN)/python -m runtime build bundles/vitl-random $(RTX)

# Ten thousand random cases a kernel, under AddressSanitizer and UndefinedBehaviorSanitizer (GCC), with the best
# instructions of this processor; FUZZ="--count 1000 --seed 5" for others, DINOV3SEG_CPU=sse2 for the baseline.
# -S: without the .pth files of the environment, which would find the build that is not sanitized.
SANITIZED := build/sanitize/site
RUNTIMES = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so)
sanitize: $(READY)
	rm -rf $(SANITIZED)
	CC=gcc CXX=g++ $(BIN)/pip install --quiet --no-deps --target $(SANITIZED) -C build-dir=build/sanitize/cmake \
	    -C cmake.define.DINOV3SEG_SANITIZE=ON -C cmake.define.DINOV3SEG_CUDA=OFF -C install.strip=false .
	PYTHONPATH=$(SANITIZED):$(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
	    LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -S tests/kernels/fuzz_kernels.py $(FUZZ)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# open-clip-torch is there for one file, the CLIP vocabulary: without its dependencies, among them torchvision,
# which does not load beside every build of torch.
$(READY): pyproject.toml CMakeLists.txt $(KERNEL_SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps open-clip-torch==3.3.0
	touch $@

clean:
	rm -rf $(VENV) build bundles out
