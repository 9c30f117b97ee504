# The integration VM. KERNEL is a series (6.12, 6.18, …) or newest.
KERNEL ?= newest
UBVM = CGO_ENABLED=0 go run ./cmd/ubvm
# Packages whose tests (build tag vm) run in the VM.
VM_PKGS ?= ./internal/vmtest

.PHONY: vm-setup vm-shell vm-test

vm-setup:
	$(UBVM) setup --kernel all

vm-shell:
	$(UBVM) shell --kernel $(KERNEL)

vm-test:
	$(UBVM) test --kernel $(KERNEL) $(foreach p,$(VM_PKGS),--pkg $(p))
