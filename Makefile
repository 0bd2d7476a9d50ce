# A newcomer needs Python >= 3.11, gcc, make and git; everything else is installed into .venv (about 6 GB, most of it torch).
PYTHON ?= python3
BIN := .venv/bin
# Real videos to time decoding on: eight whose short side is 256 px or more, so that all are stored at 256.
REAL ?= $(wildcard $(foreach name,chair-19-sd-bar chair-orig-22-sd-bar cockatoo dj_video1 dj_video4 dj_video5 pool_full testcard_long,../shared/real/neardup/$(name).mp4))
INSTALLED := .venv/.installed

.PHONY: setup demo study test check bench battery clean

setup: $(INSTALLED)  ## the environment alone

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# The road from files to an honest table, as a user would walk it. $(1) workspace, $(2) size of the world, $(3) scale of the study.
define road
	$(BIN)/stmae-data demo $(1) --scale $(2)
	$(BIN)/stmae-data build $(1)/demo-k400.toml -w $(1)
	$(BIN)/stmae-data build $(1)/demo-k700.toml -w $(1)
	$(BIN)/stmae-data build $(1)/demo-web.toml -w $(1)
	$(BIN)/stmae-data dedup demo-k700 --against demo-k400:val --to demo-k700-clean -w $(1)
	$(BIN)/stmae-data report demo-k700-clean -w $(1)
	$(BIN)/stmae-data report demo-web -w $(1)
	OMP_NUM_THREADS=1 $(BIN)/stmae-train study run demo --scale $(3) -w $(1) & \
	OMP_NUM_THREADS=1 $(BIN)/stmae-train study run demo --scale $(3) -w $(1); wait
	$(BIN)/stmae-train study run demo --scale $(3) -w $(1)
endef

demo: setup  ## the main job on a small world, at most 10 minutes on 2 cores: demo/report.html
	$(call road,demo,0.2,demo)
	$(BIN)/stmae-train study report demo --scale demo -w demo --truth demo/truth.json --html demo/report.html --summary demo/summary.json

study: setup  ## the same in full, at most 60 minutes on 2 cores: demo/study.html and demo/study.json
	$(call road,demo/study,1,study)
	$(BIN)/stmae-train study report demo --scale study -w demo/study --truth demo/study/truth.json --html demo/study.html --json-to demo/study.json

test: setup  ## the tests, under 20 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not battery"

check: setup  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## the benchmarks, a JSON line each
	for bench in tests/bench/bench_*.py; do echo "$$bench"; $(BIN)/python "$$bench" || exit 1; done
	$(if $(REAL),$(BIN)/stmae-train bench decode $(REAL) --json,@echo "bench decode: no videos; name some, as in make bench REAL='a.mp4 b.mp4'")

battery: setup  ## the long tests: kill storms, fuzz, hostile input
	$(BIN)/python -m pytest -m battery

clean:  ## everything that make created
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
