# The integration VM; see testdata/vm/README.md. KERNEL is a series (6.12, 6.18, …) or newest.
KERNEL ?= newest
# Packages whose tests with the build tag vm run in the VM.
VM_PKGS ?= ./internal/vmtest ./internal/vmtest/faults ./ublk ./internal/blkbpf
# More flags for ubvm test, such as VM_FLAGS='-v --run TestLVM'.
VM_FLAGS ?=

# A real program rather than go run, which hides exit statuses and takes Ctrl-C for itself.
UBVM = bin/ubvm
.PHONY: bin/ubvm
bin/ubvm:
	CGO_ENABLED=0 go build -o $@ ./cmd/ubvm

.PHONY: vm-setup vm-shell vm-test
vm-setup: bin/ubvm
	$(UBVM) setup --kernel all

vm-shell: bin/ubvm
	$(UBVM) shell --kernel $(KERNEL)

vm-test: bin/ubvm
	$(UBVM) test --kernel $(KERNEL) $(addprefix --pkg ,$(VM_PKGS)) $(VM_FLAGS)
