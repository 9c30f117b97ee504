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
}

// openMachine installs what the host lacks and reads the package lists, refreshed if older than
// age. Call unlock when nothing is left to build.
func openMachine(ctx context.Context, age time.Duration) (m *machine, unlock func(), err error) {
	m = &machine{}
	if m.source, err = moduleRoot(); err != nil {
		return nil, nil, err
	}
	if m.cache, err = recipe.CacheDir(); err != nil {
		return nil, nil, err
	}
	unlock, err = recipe.Lock(ctx, m.cache)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	if err = debian.EnsureHostTools(ctx, filepath.Join(m.cache, "host-packages")); err != nil {
		return nil, nil, err
	}
	mirror, err := debian.Mirror("/etc/apt")
	if err != nil {
		return nil, nil, err
	}
	if m.apt, err = debian.NewApt(filepath.Join(m.cache, "apt"), mirror); err != nil {
		return nil, nil, err
	}
	if err = m.apt.UpdateIfOlder(ctx, age); err != nil {
		return nil, nil, err
	}
	m.index, err = m.apt.Packages(ctx)
	return m, unlock, err
}

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
		MemoryMiB: 2048, Scratch: filepath.Join(m.cache, "runs"), MaxBoots: 1,
		Stdout: os.Stdout, Stderr: os.Stderr,
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
	if c.Init, err = m.goBuild(ctx, "guest", "./cmd/ubvm/guest"); err != nil {
		return c, err
	}
	c.Accel, err = vm.ChooseAccel(ctx, m.cache, c)
	return c, err
}

func (m *machine) recipe(name string) string {
	return filepath.Join(m.source, "testdata", "vm", name)
}

// goBuild compiles one command for the guest, statically, and returns its path. The Go build cache
// makes this quick when nothing has changed.
func (m *machine) goBuild(ctx context.Context, name, pkg string) (string, error) {
	dir := filepath.Join(m.cache, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return m.goTool(ctx, filepath.Join(dir, name), "build", pkg)
}

// goTool runs go build or go test -c with output to a file.
func (m *machine) goTool(ctx context.Context, output string, args ...string) (string, error) {
	// Build beside and rename: another run may be reading the old file.
	tmp := fmt.Sprintf("%s.%d", output, os.Getpid())
	defer os.Remove(tmp)
	pkg := args[len(args)-1]
	args = append(args[:len(args)-1:len(args)-1], "-o", tmp, pkg)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = m.source
	cgo := "0"
	if slices.Contains(args, "-race") {
		cgo = "1"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s %s: %w\n%s", args[0], pkg, err, out)
	}
	if err := os.Rename(tmp, output); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", errNoTests
		}
		return "", err
	}
	return output, nil
}

// errNoTests is a package for which go test -c makes nothing.
var errNoTests = errors.New("no test files")
