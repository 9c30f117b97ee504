include testdata/vm/vm.mk
