package recipe

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ubcache/cmd/ubvm/internal/debian"
)

// rootfsRecipe changes when the code below changes what it puts into the result.
const rootfsRecipe = "rootfs 1"

// rootfsFree is what a test may write into the root file system of one run.
const rootfsFree = 2 << 30

// BuildRootfs makes the root image from the recipe folder (testdata/vm/rootfs): the packages named
// in the file packages, and the files below files/. It returns the image's path.
func BuildRootfs(ctx context.Context, cache, recipe string, apt *debian.Apt, index debian.Index) (string, error) {
	packages, err := readPackages(filepath.Join(recipe, "packages"))
	if err != nil {
		return "", err
	}
	r := result{kind: "rootfs", label: debian.Release, key: []string{rootfsRecipe}}
	for _, name := range packages {
		p, ok := index[name]
		if !ok {
			return "", fmt.Errorf("root image: no package %s in %s: correct %s/packages",
				name, debian.Release, recipe)
		}
		r.key = append(r.key, p.Name+"="+p.Version)
	}
	files := filepath.Join(recipe, "files")
	sum, err := hashTree(files)
	if err != nil {
		return "", err
	}
	r.key = append(r.key, sum)
	dir, err := r.ensure(cache, func(dir string) error {
		tree := filepath.Join(dir, "tree")
		defer os.RemoveAll(tree)
		if err := debootstrap(ctx, apt.Mirror, tree, packages); err != nil {
			return err
		}
		if err := trim(tree); err != nil {
			return err
		}
		if err := overlay(files, tree); err != nil {
			return err
		}
		return MakeImage(ctx, filepath.Join(dir, "root.img"), tree,
			ImageOptions{Label: "root", FreeBytes: rootfsFree})
	})
	return filepath.Join(dir, "root.img"), err
}

func debootstrap(ctx context.Context, mirror, tree string, packages []string) error {
	args := []string{
		"--variant=minbase", "--arch=amd64", "--keyring=" + debian.Keyring,
		"--include=" + strings.Join(packages, ","), debian.Release, tree, mirror,
	}
	err := run(ctx, "debootstrap", args...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// debootstrap's own last words are usually in its log.
	log, _ := os.ReadFile(filepath.Join(tree, "debootstrap", "debootstrap.log"))
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return fmt.Errorf("%w\n%s", err, strings.Join(lines[max(0, len(lines)-12):], "\n"))
}

// trim removes what no test reads; a small image is written and copied sooner.
func trim(tree string) error {
	for _, pattern := range []string{
		"var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*",
		"usr/share/locale/*", "usr/share/info/*", "var/log/*.log", "var/cache/apt/*.bin",
	} {
		names, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	// The init mounts and writes here.
	for _, dir := range []string{"job", "out", "mnt", "usr/lib/modules"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// overlay copies the recipe's own files over the installed tree.
func overlay(files, tree string) error {
	return filepath.WalkDir(files, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(files, path)
		if err != nil {
			return err
		}
		to := filepath.Join(tree, rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if info, err := d.Info(); err == nil && info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		os.Remove(to) // the installed file may be a link
		return os.WriteFile(to, data, mode)
	})
}

// readPackages reads one package name per line; # starts a comment.
func readPackages(name string) ([]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read package list of the root image: %w", err)
	}
	var packages []string
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		packages = append(packages, strings.Fields(line)...)
	}
	return packages, nil
}

func hashTree(root string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(h, "%s %o %d\n", rel, info.Mode().Perm()&0o100, len(data))
		h.Write(data)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)), err
}
