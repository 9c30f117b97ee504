# make help lists what there is. A Debian 12 or later machine with Go 1.26, make and git needs no
# preparation; what else is needed is installed with apt-get, as root, and said.
.DEFAULT_GOAL := build
.NOTPARALLEL:
SHELL := /bin/bash

# Kernels that make test boots: a series, or newest.
KERNELS ?= 6.12 6.18 newest
# More flags of ubvm test for all kernels, for all but the newest, and for the newest. The newest
# gets all tests, the others a short list (vmtest.OnlyFull). The time limits are for what no test's own
# limit ends (vmtest.Limit), on a machine however slow.
VM_FLAGS ?=
VM_FLAGS_OLD ?= --timeout 60m --env UBCACHE_VM_SCOPE=short
VM_FLAGS_NEWEST ?= --timeout 3h --env UBCACHE_VM_SCOPE=full
# A package whose tests reset the machine; it has a run of its own.
VM_RESET_PKG ?= ./internal/vmtest/powercut

# Histories that the simulator plays in make unit: of all kinds, of SSDs that vanish, of ordered devices. Broken engines are
# hunted in as many (cache/sim/kinds.go). And how long make soak goes on.
SIM_SEEDS ?= 10500
SIM_VANISHING ?= 3000
SIM_ORDERED ?= 400
SOAK ?= 4h
SOAK_ROUNDS ?= 5

DEMO_FLAGS ?=
BENCH_FLAGS ?=
BENCH_OUT ?= bin/bench

PREFIX ?= /usr/local
DESTDIR ?=

# git does not answer in a tree that belongs to somebody else; build without the commit then.
ifeq ($(shell git rev-parse HEAD 2>/dev/null),)
export GOFLAGS += -buildvcs=false
endif
export STAGES := $(CURDIR)/bin/stages
# What tests note for the table of faults, one folder per run.
FAULTS := bin/faults
# The newest kernel must have tried all of them, unless it was told to run some tests only.
ALL_FAULTS = $(if $(filter newest,$1),$(if $(findstring --run,$(VM_FLAGS)),,--all))
SIM_FAULTS := env UBCACHE_FAULT_TABLE=$(CURDIR)/$(FAULTS)/simulator.jsonl

TOOL = go tool -modfile=tools/go.mod
STAGE = @tools/stage

include testdata/vm/vm.mk

.PHONY: build
build: bin/ubcache ## build bin/ubcache (the default)

.PHONY: bin/ubcache bin/ubdemo bin/ubbench
bin/ubcache bin/ubdemo bin/ubbench:
	CGO_ENABLED=0 go build -o $@ ./cmd/$(@F)

.PHONY: test
test: stages check unit vm-tests faults ## everything: check, unit, and the VM tests on every kernel
	@echo; echo "=== summary"; cat $(STAGES)

.PHONY: stages
stages:
	@mkdir -p bin; : >$(STAGES); rm -rf $(FAULTS)

.PHONY: faults
faults: bin/ubvm
	$(STAGE) "faults: nothing lost, nothing wrong" $(UBVM) faults $(call ALL_FAULTS,$(KERNELS)) $(FAULTS)

.PHONY: check
check: bin ## formatting, vet, staticcheck, go.mod
	$(STAGE) "gofumpt" tools/formatted
	$(STAGE) "vet, amd64" env GOARCH=amd64 go vet ./...
	$(STAGE) "vet, amd64, VM tests" env GOARCH=amd64 go vet -tags vm ./...
	$(STAGE) "vet, broken engines" go vet -tags mutants ./cache/...
	$(STAGE) "vet, arm64" env GOARCH=arm64 go vet ./...
	$(STAGE) "vet, arm64, VM tests" env GOARCH=arm64 go vet -tags vm ./...
	$(STAGE) "staticcheck" $(TOOL) staticcheck ./...
	$(STAGE) "staticcheck, VM tests" $(TOOL) staticcheck -tags vm ./...
	$(STAGE) "staticcheck, broken engines" $(TOOL) staticcheck -tags mutants ./cache/...
	$(STAGE) "go.mod is tidy" go mod tidy -diff

# The daemon's tests wait more than they compute: they begin first, beside the others.
.PHONY: unit
unit: bin ## unit and simulation tests, with the race detector; benchmarks once
	$(STAGE) "C compiler" tools/need-gcc
	$(STAGE) "unit tests, race detector" env CGO_ENABLED=1 go test -race -timeout 40m -p 3 \
		./internal/daemon $$(go list ./... | grep -v -e '^ubcache/cmd/ubcache$$' -e '^ubcache/internal/daemon$$')
	$(STAGE) "unit tests without it" go test -timeout 10m ./cmd/ubcache ./attrs/client
	$(STAGE) "unit tests, one CPU" env GOMAXPROCS=1 go test -timeout 10m ./ublk/... ./internal/uring
	@mkdir -p $(FAULTS); rm -f $(FAULTS)/simulator.jsonl
	$(STAGE) "simulator, $(SIM_SEEDS) histories" \
		$(SIM_FAULTS) go test ./cache/sim -run 'TestHistories$$' -timeout 30m -v -seeds $(SIM_SEEDS)
	$(STAGE) "simulator, ordered devices" \
		go test ./cache/sim -run OrderedHistories -timeout 30m -v -seeds $(SIM_ORDERED)
	$(STAGE) "simulator, much of one thing" \
		$(SIM_FAULTS) go test ./cache/sim -run 'Kinds$$' -timeout 30m -v -kinds 1
	$(STAGE) "simulator, SSDs that vanish" \
		$(SIM_FAULTS) go test ./cache/sim -run 'Vanishing$$' -timeout 30m -v -seeds $(SIM_VANISHING)
	$(STAGE) "simulator, a fault at every third step" \
		go test ./cache/sim -run Sweeps -timeout 30m -v -every 3
	$(STAGE) "simulator, broken engines" \
		go test -tags mutants ./cache/sim -run Mutants -timeout 30m -v
	$(STAGE) "benchmarks, once" go test -run '^$$' -bench . -benchtime 1x -timeout 10m ./...

.PHONY: vm-tests
vm-tests: $(addprefix vm-test-,$(KERNELS)) ## the VM tests on every kernel (KERNELS="6.12 newest")

vm-test-%: bin/ubvm
	$(STAGE) "VM tests, Linux $*" $(UBVM) test --kernel $* $(addprefix --pkg ,$(VM_PKGS)) \
		--out $(FAULTS)/$* $(if $(filter newest,$*),$(VM_FLAGS_NEWEST),$(VM_FLAGS_OLD)) $(VM_FLAGS)
	$(if $(wildcard $(VM_RESET_PKG)/*_test.go),$(STAGE) "VM power cuts Linux $*" \
		$(UBVM) test --kernel $* --pkg $(VM_RESET_PKG) --on-reset reboot --out $(FAULTS)/$*-powercut \
		$(if $(filter newest,$*),$(VM_FLAGS_NEWEST),$(VM_FLAGS_OLD)) $(VM_FLAGS))

.PHONY: demo
demo: build bin/ubdemo bin/ubvm ## see it work: on loop files if this machine has ublk, else in a VM
	@if why=$$(tools/has-ublk); then \
		PATH="$(CURDIR)/bin:$$PATH" bin/ubdemo $(DEMO_FLAGS); \
	else \
		echo "Running in a VM: $$why."; \
		$(UBVM) run --kernel $(KERNEL) --bin bin/ubcache --bin bin/ubdemo -- ubdemo $(DEMO_FLAGS); \
	fi

.PHONY: bench
bench: bin/ubbench ## compare with kublk, bcache, dm-cache and others, in a VM
	bin/ubbench --kernel $(KERNEL) --out $(BENCH_OUT) $(BENCH_FLAGS)

.PHONY: vm-long
vm-long: stages bin/ubvm ## the VM tests on one kernel, with those that make test has no time for
	$(STAGE) "VM tests, long list" $(UBVM) test --kernel $(KERNEL) --timeout 8h \
		--env UBCACHE_VM_SCOPE=long $(addprefix --pkg ,$(VM_PKGS)) --out $(FAULTS)/long $(VM_FLAGS)
	$(STAGE) "VM power cuts, long list" $(UBVM) test --kernel $(KERNEL) --timeout 3h \
		--env UBCACHE_VM_SCOPE=long --pkg $(VM_RESET_PKG) --on-reset reboot --out $(FAULTS)/long-powercut \
		$(VM_FLAGS)
	$(STAGE) "faults: nothing lost, nothing wrong" $(UBVM) faults $(call ALL_FAULTS,$(KERNEL)) $(FAULTS)

# The long versions of tests (vmtest.Soak) play back every point of a recording and repeat each fault.
.PHONY: soak
soak: stages bin/ubvm ## new histories for SOAK=4h, every fault at length, then the VM tests SOAK_ROUNDS=5 times
	@mkdir -p $(FAULTS)
	$(STAGE) "simulator for $(SOAK)" $(SIM_FAULTS) go test ./cache/sim -run 'TestHistories$$' -timeout 0 -v \
		-for $(SOAK) -from $$(date +%s)000000
	$(STAGE) "simulator, ordered devices" \
		go test ./cache/sim -run OrderedHistories -timeout 0 -v -seeds 20000
	$(STAGE) "simulator, SSDs that vanish" $(SIM_FAULTS) go test ./cache/sim -run 'Vanishing$$' -timeout 0 -v \
		-for $(SOAK) -part 4 -from $$(date +%s)000000
	$(STAGE) "simulator, a fault at every step" go test ./cache/sim -run Sweeps -timeout 0 -v -every 1
	$(STAGE) "faults in the VM, at length" $(UBVM) test --kernel $(KERNEL) --timeout 24h \
		--env UBCACHE_VM_SCOPE=soak $(addprefix --pkg ,$(VM_PKGS)) --out $(FAULTS)/soak $(VM_FLAGS)
	$(STAGE) "VM power cuts, at length" $(UBVM) test --kernel $(KERNEL) --timeout 12h \
		--env UBCACHE_VM_SCOPE=soak --pkg $(VM_RESET_PKG) --on-reset reboot --out $(FAULTS)/soak-powercut \
		$(VM_FLAGS)
	$(STAGE) "VM tests, $(SOAK_ROUNDS) times" $(UBVM) test --kernel $(KERNEL) --timeout 12h \
		--env UBCACHE_VM_SCOPE=full $(addprefix --pkg ,$(VM_PKGS)) --out $(FAULTS)/soak-rounds $(VM_FLAGS) \
		-- -test.count=$(SOAK_ROUNDS)
	$(STAGE) "faults: nothing lost, nothing wrong" $(UBVM) faults $(call ALL_FAULTS,$(KERNEL)) $(FAULTS)

.PHONY: fmt
fmt: ## format all Go files
	$(TOOL) gofumpt -w $$(find . -name '*.go' -not -path './.git/*' -not -path './bin/*')

.PHONY: docs
docs: ## write docs/cli.md anew from the help texts
	go test ./internal/repo -run CLI -update

.PHONY: install
install: ## install into PREFIX (/usr/local): program, systemd unit, udev rule
	@[ -e bin/ubcache ] || $(MAKE) build
	install -D bin/ubcache $(DESTDIR)$(PREFIX)/sbin/ubcache
	@for f in packaging/*.service packaging/*.target; do [ ! -e $$f ] || \
		{ install -v -d $(DESTDIR)$(PREFIX)/lib/systemd/system && \
		sed 's|/usr/sbin/ubcache|$(PREFIX)/sbin/ubcache|' $$f \
			>$(DESTDIR)$(PREFIX)/lib/systemd/system/$${f##*/}; }; done
	@for f in packaging/*.rules; do [ ! -e $$f ] || \
		{ install -v -d $(DESTDIR)$(PREFIX)/lib/udev/rules.d && \
		sed 's|/usr/sbin/ubcache|$(PREFIX)/sbin/ubcache|' $$f \
			>$(DESTDIR)$(PREFIX)/lib/udev/rules.d/$${f##*/}; }; done

.PHONY: clean
clean: ## remove bin/ (the VM's kernels and images stay in their cache)
	rm -rf bin

bin:
	@mkdir -p bin

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.* ## ' $(firstword $(MAKEFILE_LIST)) | \
		sed 's/:.* ## /\t/' | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@printf '  make %-10s %s\n' vm-shell "a shell in the VM, with ubcache (KERNEL=6.12)" \
		vm-test "the VM tests on one kernel (KERNEL=6.12)" vm-setup "build kernels and root image"
