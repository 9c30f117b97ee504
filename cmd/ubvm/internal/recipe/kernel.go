package recipe

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ubcache/cmd/ubvm/internal/debian"
)

// kernelRecipe changes when the code below changes what it puts into the result.
const kernelRecipe = "kernel 1"

// bootModules are loaded by the guest's init before it can see the root image.
var bootModules = []string{"virtio_blk"}

// A Kernel is a built kernel in the cache.
type Kernel struct {
	debian.Kernel
	dir string
}

// Image is the compressed kernel.
func (k Kernel) Image() string { return filepath.Join(k.dir, "vmlinuz") }

// Modules is an ext4 image of /usr/lib/modules.
func (k Kernel) Modules() string { return filepath.Join(k.dir, "modules.img") }

// BootModules are files that the init must load, in this order.
func (k Kernel) BootModules() []string {
	names, _ := filepath.Glob(filepath.Join(k.dir, "boot", "*.ko*"))
	slices.Sort(names)
	return names
}

// BuildKernel downloads a kernel's packages and arranges them for booting.
func BuildKernel(ctx context.Context, cache string, apt *debian.Apt, k debian.Kernel) (Kernel, error) {
	r := result{kind: "kernel", label: k.Release, key: []string{kernelRecipe}}
	for _, p := range k.Packages {
		r.key = append(r.key, p.Name+"="+p.Version)
	}
	dir, err := r.ensure(cache, func(dir string) error {
		return buildKernel(ctx, apt, k, dir)
	})
	return Kernel{Kernel: k, dir: dir}, err
}

func buildKernel(ctx context.Context, apt *debian.Apt, k debian.Kernel, dir string) error {
	tree := filepath.Join(dir, "tree")
	if err := unpack(ctx, apt, k.Packages, dir, tree); err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	modules := filepath.Join(tree, "usr/lib/modules")
	if _, err := os.Stat(filepath.Join(tree, "lib/modules")); err == nil {
		modules = filepath.Join(tree, "lib/modules")
	} else if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
		return err
	}
	release := filepath.Join(modules, k.Release)
	// Up to 6.18 the image lies in /boot, later beside the modules.
	for file, places := range map[string][]string{
		"vmlinuz": {filepath.Join(release, "vmlinuz"), filepath.Join(tree, "boot/vmlinuz-"+k.Release)},
		"config":  {filepath.Join(release, "config"), filepath.Join(tree, "boot/config-"+k.Release)},
	} {
		if err := renameFirst(filepath.Join(dir, file), places); err != nil {
			return err
		}
	}
	if err := run(ctx, "depmod", "-b", tree, k.Release); err != nil {
		return err
	}
	if err := copyBootModules(release, filepath.Join(dir, "boot")); err != nil {
		return err
	}
	return MakeImage(ctx, filepath.Join(dir, "modules.img"), modules, ImageOptions{Label: "modules"})
}

func renameFirst(to string, from []string) error {
	for _, name := range from {
		if os.Rename(name, to) == nil {
			return nil
		}
	}
	return fmt.Errorf("no %s in the kernel's packages: looked for %s", filepath.Base(to),
		strings.Join(from, ", "))
}

// copyBootModules puts the boot modules and what they depend on into dir, numbered in load order.
func copyBootModules(release, dir string) error {
	deps, err := moduleDeps(filepath.Join(release, "modules.dep"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var order []string
	for _, m := range bootModules {
		i := slices.IndexFunc(deps, func(d []string) bool { return moduleName(d[0]) == m })
		if i < 0 {
			continue // built in
		}
		// modules.dep lists what must be loaded first last.
		for _, file := range slices.Backward(deps[i]) {
			if !slices.Contains(order, file) {
				order = append(order, file)
			}
		}
	}
	for i, file := range order {
		data, err := os.ReadFile(filepath.Join(release, file))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%02d-%s", i, filepath.Base(file))
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moduleDeps reads modules.dep: each entry is a module's file followed by those it needs.
func moduleDeps(name string) ([][]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var deps [][]string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		module, needs, ok := strings.Cut(lines.Text(), ":")
		if ok {
			deps = append(deps, append([]string{module}, strings.Fields(needs)...))
		}
	}
	return deps, lines.Err()
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// unpack downloads packages into dir, unpacks them into tree and removes the archives.
func unpack(ctx context.Context, apt *debian.Apt, ps []debian.Package, dir, tree string) error {
	files, err := apt.Download(ctx, dir, ps)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := run(ctx, "dpkg-deb", "-x", file, tree); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	return nil
}
