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
	vm, err := o.boots(ctx)
	if err != nil {
		return err
	}
	printRows(os.Stdout, vm)
	if rows = append(rows, vm...); len(rows) == 0 {
		return fmt.Errorf("--only %s matches nothing", o.only)
	}
	file := filepath.Join(o.out, resultFile)
	if err := writeRows(file, rows); err != nil {
		return err
	}
	fmt.Println("results in", file)
	return verdict(rows)
}

// boots runs this program in VMs, one or several for each stage.
func (o *options) boots(ctx context.Context) (rows []row, err error) {
	dir, err := os.MkdirTemp("", "ubbench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"ubbench", "ubcache", "ubvm"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it must run in another root
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	for i := range plan {
		if len(o.selected(i).rows) == 0 {
			continue
		}
		var starts [][]row
		for range max(1, plan[i].starts) {
			r, err := o.boot(ctx, dir, i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", plan[i].name, err)
			}
			starts = append(starts, r)
		}
		rows = append(rows, merge(starts)...)
	}
	return rows, nil
}

// boot runs a stage in a VM.
func (o *options) boot(ctx context.Context, bin string, stage int) ([]row, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ubvm"), "run", "--kernel", o.kernel,
		"--kublk", "--bare", "--mem", "6144", "--prealloc", "--erms", "--timeout", "60m", "--out", bin,
		"--bin", filepath.Join(bin, "ubbench"), "--bin", filepath.Join(bin, "ubcache"), "--",
		"ubbench", "--rounds", strconv.Itoa(o.rounds), "--time", o.seconds.String(),
		"--stage", strconv.Itoa(stage), "--only", o.only)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return readRows(filepath.Join(bin, resultFile))
}
