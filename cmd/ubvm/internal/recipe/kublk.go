package recipe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ubcache/cmd/ubvm/internal/debian"
)

// kublkRecipe changes when the code below changes what it puts into the result.
const kublkRecipe = "kublk 1"

// kublkTools are installed in the folder that kublk is built in.
var kublkTools = []string{"gcc", "libc6-dev", "liburing-dev"}

// kublkFolder holds kublk in the kernel's source.
const kublkFolder = "tools/testing/selftests/ublk"

// BuildKublk compiles the kernel's own ublk server from the newest linux-source package, statically,
// in a chroot of the root image's release: the host's liburing may be too old. It returns the
// program's path. The source stays out of our tree: it is under another licence.
func BuildKublk(ctx context.Context, cache string, apt *debian.Apt, index debian.Index) (string, error) {
	source, err := index.LinuxSource()
	if err != nil {
		return "", err
	}
	headers := debian.Package{Name: "linux-libc-dev", Version: source.Version}
	r := result{kind: "kublk", label: strings.TrimPrefix(source.Name, "linux-source-"), key: []string{
		kublkRecipe, source.Version, index["liburing-dev"].Version, index["gcc"].Version,
	}}
	dir, err := r.ensure(cache, func(dir string) error {
		root := filepath.Join(dir, "root")
		defer os.RemoveAll(root)
		if err := debootstrap(ctx, apt.Mirror, root, kublkTools); err != nil {
			return err
		}
		src := filepath.Join(root, "src")
		if err := os.Mkdir(src, 0o755); err != nil {
			return err
		}
		if err := unpackSource(ctx, apt, source, dir, src); err != nil {
			return err
		}
		if err := unpack(ctx, apt, []debian.Package{headers}, dir, src); err != nil {
			return err
		}
		// The new headers come first: liburing's own copy of io_uring.h is older and steps back.
		script := fmt.Sprintf("cd /src/%s && gcc -O2 -static -w -D_GNU_SOURCE= -isystem /src/usr/include "+
			"-isystem /src/usr/include/x86_64-linux-gnu -I /src/tools/testing/selftests "+
			"-o /src/kublk $(ls *.c | grep -v '^metadata_size.c$') -luring -lpthread -lm", kublkFolder)
		if err := run(ctx, "chroot", root, "/bin/sh", "-c", script); err != nil {
			return err
		}
		return os.Rename(filepath.Join(src, "kublk"), filepath.Join(dir, "kublk"))
	})
	return filepath.Join(dir, "kublk"), err
}

// unpackSource takes the few folders that are needed out of the kernel's source.
func unpackSource(ctx context.Context, apt *debian.Apt, source debian.Package, dir, to string) error {
	pkg := filepath.Join(dir, "source")
	defer os.RemoveAll(pkg)
	if err := unpack(ctx, apt, []debian.Package{source}, dir, pkg); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(pkg, "usr/src/linux-source-*.tar.xz"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("%s holds %d source archives, want 1", source.Name, len(archives))
	}
	return run(ctx, "tar", "-xJf", archives[0], "-C", to, "--strip-components=1", "--wildcards",
		"--no-wildcards-match-slash", "*/"+kublkFolder, "*/tools/testing/selftests/*.h")
}
