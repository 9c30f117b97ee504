package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ubcache/cmd/ubvm/internal/debian"
	"ubcache/cmd/ubvm/internal/recipe"
	"ubcache/cmd/ubvm/internal/vm"
)

// listAge is for how long resolved kernel versions are good.
const listAge = 12 * time.Hour

// machine is what every subcommand needs: the cache, the archive and the source tree.
type machine struct {
	cache  string
	source string // root of the module
	apt    *debian.Apt
	index  debian.Index
	built  *vm.Scratch // programs compiled for this run
	unlock func()      // gives up the cache's lock, once nothing is left to build in the cache
}

// openMachine installs what the host lacks and reads the package lists, refreshed if older than
// age. The caller must close it.
func openMachine(ctx context.Context, age time.Duration) (*machine, error) {
	m := &machine{}
	var err error
	if m.source, err = moduleRoot(); err != nil {
		return nil, err
	}
	if m.cache, err = recipe.CacheDir(); err != nil {
		return nil, err
	}
	if m.built, err = vm.NewScratch(m.runs()); err != nil {
		return nil, err
	}
	if m.unlock, err = recipe.Lock(ctx, m.cache); err != nil {
		m.built.Close()
		return nil, err
	}
	if err := m.prepare(ctx, age); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) prepare(ctx context.Context, age time.Duration) error {
	err := debian.EnsureHostTools(ctx, filepath.Join(m.cache, "host-packages"))
	if err != nil {
		return err
	}
	mirror, err := debian.Mirror("/etc/apt")
	if err != nil {
		return err
	}
	if m.apt, err = debian.NewApt(filepath.Join(m.cache, "apt"), mirror); err != nil {
		return err
	}
	if err := m.apt.UpdateIfOlder(ctx, age); err != nil {
		return err
	}
	m.index, err = m.apt.Packages(ctx)
	return err
}

func (m *machine) close() {
	m.unlock()
	m.built.Close()
}

// runs is the folder for what lives as long as a run.
func (m *machine) runs() string { return filepath.Join(m.cache, "runs") }

// moduleRoot finds the source tree that the working directory is in.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		text, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module ubcache\n") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in ubcache's source tree: run ubvm there", dir)
		}
	}
}

// config builds what a run with this kernel needs and returns a configuration without a job.
func (m *machine) config(ctx context.Context, series string) (vm.Config, error) {
	c := vm.Config{
		MemoryMiB: 2048, Scratch: m.runs(), MaxBoots: 1,
		Stdout: os.Stdout, Stderr: os.Stderr, Files: map[string]string{},
	}
	chosen, err := m.index.ResolveKernel(series)
	if err != nil {
		return c, err
	}
	kernel, err := recipe.BuildKernel(ctx, m.cache, m.apt, chosen)
	if err != nil {
		return c, err
	}
	c.Kernel, c.Modules, c.BootModules = kernel.Image(), kernel.Modules(), kernel.BootModules()
	c.Rootfs, err = recipe.BuildRootfs(ctx, m.cache, m.recipe("rootfs"), m.apt, m.index)
	if err != nil {
		return c, err
	}
	if c.Init, err = m.goTool(ctx, "guest-init", "build", "./cmd/ubvm/guest"); err != nil {
		return c, err
	}
	c.Accel, err = vm.ChooseAccel(ctx, m.cache, c)
	return c, err
}

func (m *machine) recipe(name string) string {
	return filepath.Join(m.source, "testdata", "vm", name)
}

// goTool runs go build or go test -c, statically linked but for the race detector, and returns the
// path of the result. The Go build cache makes this quick when nothing has changed.
func (m *machine) goTool(ctx context.Context, name string, args ...string) (string, error) {
	output := filepath.Join(m.built.Dir, name)
	pkg := args[len(args)-1]
	args = append(args[:len(args)-1:len(args)-1], "-o", output, pkg)
	cgo := "0"
	if slices.Contains(args, "-race") {
		cgo = "1"
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = m.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s %s: %w\n%s", args[0], pkg, err, out)
	}
	if _, err := os.Stat(output); err != nil {
		return "", errNoTests
	}
	return output, nil
}

// errNoTests is a package for which go test -c makes nothing.
var errNoTests = errors.New("no test files")
