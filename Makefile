# Everything a person or a CI runner starts. The work is in scripts/, one script per target.

PREFIX ?= /usr/local
# Cargo profile of build, demo, bench and install; `make test` uses dev.
PROFILE ?= release

export PREFIX PROFILE

.DEFAULT_GOAL := help
.PHONY: help build guest deps test test-all demo bench bench-cri bench-vmm lint fuzz install clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

deps: ## Install the packages that building and testing need (root)
	@scripts/deps.sh

build: ## Build the daemon and the per-pod process
	@scripts/build.sh "$(PROFILE)"

guest: ## Build the guest kernel, the agent and the initramfs
	@scripts/guest.sh

test: ## Run every check that CI runs
	@scripts/test.sh

test-all: ## Run what is too long for CI: every suite and critest in the lab
	@scripts/test-all.sh

demo: ## Start a daemon of its own, run a pod, show what happens, clean up
	@scripts/demo.sh

bench: ## Measure, and write a table
	@scripts/bench.sh

bench-cri: ## Measure the CRI's verbs beside containerd and runc, and write tables
	@scripts/bench-cri.sh

bench-vmm: ## Compare the monitor with QEMU (and FIRECRACKER=path) in the lab, and write a table
	@scripts/bench-vmm.sh

lint: ## Check format and lints
	@scripts/lint.sh

fuzz: ## Feed the parsers of hostile input with mutated input for a while
	@scripts/fuzz.sh

install: build guest ## Install below PREFIX (/usr/local)
	@scripts/install.sh

clean: ## Remove what was built here; the cache outside the checkout stays
	@scripts/clean.sh
