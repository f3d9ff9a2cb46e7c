# make demo   segments a photo; make test   runs all tests. Both start from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PHOTO = $(shell $(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data/coffee.png')")
KERNEL_SOURCES = $(shell git ls-files 'kernels/*.cpp' 'kernels/*.hpp' 'kernels/*.cu' tests/kernels/replay.cpp)

.PHONY: demo test test-slow sanitize lint format clean

demo: $(READY)
	$(BIN)/python export/build_engines.py --random-weights
	$(BIN)/python -m runtime segment $(PHOTO) --classes "cup, saucer, spoon, table, shadow" --bundle bundles/tiny -o out/demo.png

test: $(READY)
	$(BIN)/python -m pytest -q

# Minutes and gigabytes: full-size models.
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

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
	$(BIN)/clang-format --dry-run -Werror $(KERNEL_SOURCES)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNEL_SOURCES)

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
