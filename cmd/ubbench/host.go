package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// host runs the Go benchmarks and the VM, and puts their results together.
func (o *options) host(ctx context.Context) error {
	if _, err := os.Stat("cmd/ubbench"); err != nil {
		return errors.New("not in the root of ubcache's source tree")
	}
	if o.out == "" {
		o.out = filepath.Join("bin", "bench")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	var rows []row
	if o.native {
		var err error
		if rows, err = o.goBenchmarks(ctx); err != nil {
			return err
		}
		printRows(os.Stdout, rows)
	}
	file := filepath.Join(o.out, resultFile)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	vmErr := o.boot(ctx)
	vm, err := readRows(file)
	if err != nil { // the VM has said why
		return errors.Join(vmErr, err)
	}
	rows = append(rows, vm...)
	if err := writeRows(file, rows); err != nil {
		return err
	}
	fmt.Println("results in", file)
	if vmErr != nil && allMet(vm) {
		return vmErr
	}
	return verdict(rows)
}

// boot runs this program in the VM.
func (o *options) boot(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "ubbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"ubbench", "ubcache", "ubvm"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it must run in another root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "ubvm"), "run", "--kernel", o.kernel,
		"--kublk", "--bare", "--mem", "6144", "--prealloc", "--timeout", "60m", "--out", o.out,
		"--bin", filepath.Join(dir, "ubbench"), "--bin", filepath.Join(dir, "ubcache"), "--",
		"ubbench", "--rounds", strconv.Itoa(o.rounds), "--time", o.seconds.String(),
		"--only", o.only)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
