# `make run` starts one node on localhost; `make test` runs every suite in its short form; `make acceptance` runs the
# full counts. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

TARGET ?= $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
DATA_DIR ?= default.tailwater
export CARGO_TARGET_DIR := $(TARGET)

.PHONY: help prepare build run cluster test test-deploy test-kubernetes lint acceptance bench bench-quick bench-full bench-long bench-tier reference sim fuzz

help: ## What there is to run.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

prepare:
	@scripts/prepare.sh

build: prepare ## Build the server (release).
	@echo 'building tailwater (a first build compiles RocksDB: 20 to 40 minutes on two cores) ...'
	cargo build --release -p tailwater-server

run: build ## Build, then serve on 127.0.0.1:2379 with data in $(DATA_DIR).
	@scripts/run.sh "$(TARGET)/release/tailwater" "$(DATA_DIR)"

cluster: build ## Build, then serve three members on localhost with data in cluster.tailwater.
	@scripts/cluster.sh "$(TARGET)/release/tailwater" cluster.tailwater

test: prepare ## Every suite, short form.
	@scripts/test.sh

test-deploy: prepare ## What is in deploy/: chart, manifests, rules, dashboards and image, rendered, read and started (needs Go).
	cargo build -p tailwater-server
	TAILWATER_BIN="$${TAILWATER_BIN:-$(TARGET)/debug/tailwater}" TARGET_DIR="$(TARGET)" tests/deploy/run.sh

test-kubernetes: build reference ## A real Kubernetes API server on tailwater and on etcd (needs Go); FULL=1: 50,000 objects, 20 rounds of faults; OLDER=1: an older minor.
	@TAILWATER_BIN="$(TARGET)/release/tailwater" ETCD_BIN="$(TARGET)/reference/etcd" TARGET_DIR="$(TARGET)" tests/kubernetes/run.sh

acceptance: prepare ## Every suite with the full counts; hours.
	@ACCEPTANCE=1 scripts/test.sh

lint: prepare ## Formatting, lints and documentation, warnings denied.
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items

sim: prepare ## Simulated clusters: SEED=7 replays one with a trace, SEEDS=1..1000 runs a range (LEDGER=1 notes it).
	cargo run -q $(if $(DEBUG),,--release) -p tailwater-sim -- $(or $(SEED),$(SEEDS),1..101) $(if $(OPERATIONS),--operations $(OPERATIONS)) \
	  $(if $(BUG),--bug $(BUG)) $(if $(SEED),--trace) $(if $(LEDGER),--ledger docs/sim-ledger.md)

fuzz: prepare ## Every decoder under libFuzzer: SECONDS=60 for each of them, TARGETS='json rows' for some, LEDGER=1 notes it.
	@LEDGER=$(LEDGER) scripts/fuzz.sh $(or $(SECONDS),60) $(TARGETS)

reference: ## The real etcd and etcdctl that the tests compare with (needs Go).
	@tests/etcd/build.sh "$(TARGET)/reference"

bench: build reference ## Rows with targets beside a real etcd (server on CPU 0, load on CPU 1), tables and plots in target/bench; bench-quick takes a few minutes; bench-long has the rows that take minutes each.
	$(MAKE) bench-full

bench-quick bench-full bench-long: bench-%: build reference
	cargo build --release -p tailwater-bench
	"$(TARGET)/release/tailwater-bench" suite --size $* --pin --tailwater "$(TARGET)/release/tailwater" --etcd "$(TARGET)/reference/etcd" \
	  --out "$(TARGET)/bench" --commit "commit $$(git rev-parse --short=12 HEAD)" $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-tier: build reference ## What watchers, stalled clients, lists and fanouts cost and take, beside a real etcd; over an hour.
	cargo build --release -p tailwater-bench
	for experiment in isolation bound memory lists topology; do echo "## $$experiment"; \
	  "$(TARGET)/release/tailwater-bench" $$experiment --tailwater "$(TARGET)/release/tailwater" --etcd "$(TARGET)/reference/etcd" --pin; done
