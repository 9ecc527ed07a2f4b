# Two commands: `make demo` and `make test`. Both create $(VENV) if needed and leave nothing outside this folder.
PYTHON ?= python3
VENV ?= .venv
# Named exactly, as a range would pull the newest build with gigabytes of CUDA packages; any torch >= 2.10 works.
TORCH ?= torch==2.13.0
# Options of `stprune demo` or pytest: make demo ARGS="--data demand", make test ARGS="-k sampler".
ARGS ?=

BIN = $(VENV)/bin
BUILD_INPUTS = pyproject.toml CMakeLists.txt $(wildcard cmake/* csrc/*.* csrc/*/*)
export PIP_CACHE_DIR = $(CURDIR)/$(VENV)/cache
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MPLCONFIGDIR = $(CURDIR)/$(VENV)/cache/matplotlib
# A spinning OpenMP team costs milliseconds whenever a neighbour holds a core.
export OMP_WAIT_POLICY = passive

FRAMEWORKS = $(VENV)-frameworks
# BasicTS imports its trainer from easy-torch, which is another package than easytorch.
PINNED = "basicts>=1.1,<1.2" "easy-torch>=1.3,<1.4" "absl-py>=2" "easydict>=1.13" "setproctitle>=1.3" "einops>=0.8" \
  "torch-spatiotemporal==0.9.5" "torch-geometric-temporal>=0.56,<0.57"

.PHONY: demo test frameworks lint format wheel sanitize clean

demo: $(VENV)/.demo
	$(BIN)/stprune demo $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)

frameworks: $(FRAMEWORKS)/.installed
	$(FRAMEWORKS)/bin/python -m pytest tests/frameworks $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inc' 'csrc/*.cu' 'csrc/*.cuh')

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inc' 'csrc/*.cu' 'csrc/*.cuh')

wheel: $(VENV)/.package
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps -w dist .

sanitize: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash .ci/sanitize.sh

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	$(BIN)/pip install --quiet "$(TORCH)"
	touch $@

# The build's tools are installed first, and pip makes no environment of its own for them: its path would change every time,
# and with it everything in build/ would be compiled again.
$(VENV)/.package: $(VENV)/.torch $(BUILD_INPUTS)
	$(BIN)/pip install --quiet "scikit-build-core>=0.11,<2" "cmake>=3.25" "ninja>=1.11"
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

# The package is there already: these two only add other packages.
$(VENV)/.installed: $(VENV)/.package
	$(BIN)/pip install --quiet "stprune[dev]"
	touch $@

# A study needs less than the tests. SimBench's data files sit inside its package; its dependencies are not needed to read them.
$(VENV)/.demo: $(VENV)/.package
	$(BIN)/pip install --quiet "stprune[data,study]"
	$(BIN)/pip install --quiet --no-deps "simbench>=1.6,<2"
	touch $@

# The frameworks have an environment of their own, which takes torch, stprune and the test tools from the first. The second
# list pins other versions of torch than the tests run, or brings what the tests do not need.
$(FRAMEWORKS)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  >"$$($(FRAMEWORKS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first.pth"
	$(FRAMEWORKS)/bin/pip install --quiet "stprune[frameworks]"
	$(FRAMEWORKS)/bin/pip install --quiet --no-deps $(PINNED)
	touch $@

clean:
	rm -rf $(VENV) $(FRAMEWORKS) build dist stprune-demo stprune-study
