package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"ubcache/cmd/ubvm/internal/progress"
)

// hostTools are the commands that building images and booting need, with the package of each.
var hostTools = []struct{ command, pkg string }{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"debootstrap", "debootstrap"},
	{"mke2fs", "e2fsprogs"},
	{"debugfs", "e2fsprogs"},
	{"depmod", "kmod"},
	{"dpkg-deb", "dpkg"},
	{"xz", "xz-utils"},
	{"gpgv", "gpgv"},
	{"tar", "tar"},
}

// EnsureHostTools installs what is missing with the host's apt-get; it does nothing, quickly, on a
// machine that has everything. scratch is a folder for downloaded packages: the host's own archive
// folder may be emptied at any time by another apt run.
func EnsureHostTools(ctx context.Context, scratch string) error {
	// Root's PATH lacks the sbin folders in some shells.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	var missing []string
	for _, t := range hostTools {
		if _, err := exec.LookPath(t.command); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if _, err := os.Stat(Keyring); err != nil {
		missing = append(missing, "debian-archive-keyring")
	}
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing packages: run as root once, or: apt-get install %s",
			strings.Join(missing, " "))
	}
	defer progress.Start("installing " + strings.Join(missing, ", "))()
	if err := os.MkdirAll(filepath.Join(scratch, "partial"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	// A lock held by another apt is waited for; interrupted work of another dpkg is finished first.
	options := []string{"-q", "-oDPkg::Lock::Timeout=600", "-oDir::Cache::archives=" + scratch}
	steps := [][]string{
		append(options, "update"),
		append(append(options, "install", "-y", "--no-install-recommends"), missing...),
	}
	for _, args := range steps {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
		if out, err := cmd.CombinedOutput(); err != nil {
			os.Stderr.Write(out)
			return fmt.Errorf("install %s: %w", strings.Join(missing, " "), err)
		}
	}
	return nil
}
