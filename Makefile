# make demo                     the whole experiment on synthetic reviews, then open out/grammar/report.html
# make demo DATA=FILE|FOLDER    the same on real reviews
# make test                     the tests that need neither a GPU nor minutes
# make check                    ruff, mypy --strict, import-linter
# make cubins                   compile the Hopper kernels that are shipped; needs nvcc

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PROBES := $(BIN)/fastlstm-probes
FASTLSTM := $(BIN)/fastlstm

.PHONY: demo test test-slow check cubins clean
.DELETE_ON_ERROR:

test: $(INSTALLED)
	$(BIN)/pytest -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

cubins: $(INSTALLED)
	$(BIN)/python -m fastlstm_kernels.hopper.binary

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The demonstration, a command a stage. Without DATA the text is synthetic, from the package's own grammar.
ifdef DATA
ifneq ($(words $(DATA)),1)
$(error DATA: expected one path without spaces, got $(DATA))
endif
OUT := out/data-$(firstword $(subst ., ,$(notdir $(patsubst %/,%,$(DATA)))))
PREPARE := reviews $(DATA) --valid-fraction 0.02 --test-fraction 0.1
DOCUMENTS := 2500
TAGS := auto
PRIME := I bought this
else
OUT := out/grammar
PREPARE := grammar --reviews 60000
DOCUMENTS := 4000
TAGS := gold
PRIME := I
endif

demo: $(OUT)/report.html
	@echo "open $(OUT)/report.html in a browser"

# Raw text -> shards of bytes with an index and a manifest.
$(OUT)/corpus/manifest.json: $(DATA) | $(INSTALLED)
	$(FASTLSTM) prepare $(PREPARE) --out $(OUT)/corpus
	touch $@

# Shards -> a byte-level language model; a killed run goes on where it stopped.
$(OUT)/run/trained: $(OUT)/corpus/manifest.json fastlstm/recipes/demo.toml
	$(FASTLSTM) train demo --data $(OUT)/corpus --out $(OUT)/run
	touch $@

# Held-out reviews with their sentiment and part-of-speech tags.
$(OUT)/text/manifest.json: $(OUT)/corpus/manifest.json
	$(PROBES) label reviews $(OUT)/corpus --documents $(DOCUMENTS) --tags $(TAGS) --out $(OUT)/text
	touch $@

# Cell states into Zarr: the last state of every review, and every state of some reviews; trained and untrained.
$(OUT)/last.done: $(OUT)/run/trained $(OUT)/text/manifest.json
	$(FASTLSTM) dump $(OUT)/run $(OUT)/text --rows document --dtype float32 --out $(OUT)/last.zarr
	$(FASTLSTM) dump $(OUT)/run $(OUT)/text --rows document --dtype float32 --untrained --out $(OUT)/last-untrained.zarr
	touch $@
$(OUT)/bytes.done: $(OUT)/run/trained $(OUT)/text/manifest.json
	$(FASTLSTM) dump $(OUT)/run $(OUT)/text --rows all --documents 150 --out $(OUT)/bytes.zarr
	$(FASTLSTM) dump $(OUT)/run $(OUT)/text --rows all --documents 150 --untrained --out $(OUT)/bytes-untrained.zarr
	touch $@

# Probes on the stored states.
$(OUT)/results/sentiment.done: $(OUT)/last.done
	$(PROBES) fit sentiment $(OUT)/last.zarr --untrained $(OUT)/last-untrained.zarr --out $(OUT)/results --skip-unlabelled
	touch $@
$(OUT)/results/part_of_speech.done: $(OUT)/bytes.done
	$(PROBES) fit pos $(OUT)/bytes.zarr --untrained $(OUT)/bytes-untrained.zarr --out $(OUT)/results --skip-untagged
	touch $@

$(OUT)/samples.jsonl: $(OUT)/run/trained
	$(FASTLSTM) sample $(OUT)/run --prime "\n $(PRIME)" --count 4 --temperature 0.6 --out $@

$(OUT)/report.html: $(OUT)/results/sentiment.done $(OUT)/results/part_of_speech.done $(OUT)/samples.jsonl
	$(PROBES) report --run $(OUT)/run --results $(OUT)/results --states $(OUT)/bytes.zarr \
	  --samples $(OUT)/samples.jsonl --readme-figure $(OUT)/figure.png --out $@

clean:
	rm -rf out build *.egg-info
