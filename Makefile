# The commands of this project. All are made for Debian and Ubuntu, as root, without questions.
# `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-fleet bench-mesh soak build setup

# Where everything that is built or fetched goes; nothing else in the tree is written to.
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR

help: ## Show this list
	@echo "make run     set up, build, start Atoll, show a tour, serve until Ctrl-C (ONCE=1: end after the tour)"
	@echo "make test    everything that must pass: format, lints, licences, unit and whole-system tests, fuzzing"
	@echo "make lint    the first three of these"
	@echo "make bench   measure Atoll side by side with its peers; results in bench/out/"
	@echo "make bench-fleet  measure the fleet: Cluster Autoscaler's calls on 5,000 machines, plans, distance from the bound, energy of weeks"
	@echo "make bench-mesh   measure the mesh: beside wireguard-go, over a long way, joins, 10,000 nodes on one coordinator"
	@echo "make soak    pause and resume 10,000 times, kill everything 200 times, make and delete 50 states (hours;"
	@echo "             CYCLES=, KILLS= and OBJECTS= change how often)"
	@echo "make build   the program: \$$CARGO_TARGET_DIR/release/atoll"
	@echo "make setup   install the Debian packages that all of this needs"

run: ## Set up, build, start, tour
	@scripts/setup.sh run
	@scripts/build.sh
	@scripts/run.sh

test: ## Everything that must pass
	@scripts/setup.sh test
	@scripts/test.sh

lint: ## Format, lints, licences
	@scripts/setup.sh lint
	@scripts/lint.sh

bench: ## Side by side with peers
	@scripts/setup.sh bench
	@bench/run.sh

bench-fleet: ## The fleet alone
	@scripts/setup.sh build
	@cargo run --quiet --release --locked -p fleet --example storm
	@cargo run --quiet --release --locked -p fleet --example speed
	@cargo run --quiet --release --locked -p fleet --example weeks

bench-mesh: ## The mesh alone
	@scripts/setup.sh bench
	@bench/mesh.sh

soak: ## For hours: what must hold however often
	@scripts/setup.sh test
	@scripts/build.sh
	@scripts/soak.sh

build: ## The program
	@scripts/setup.sh build
	@scripts/build.sh

setup: ## Debian packages for all of this
	@scripts/setup.sh run test bench
