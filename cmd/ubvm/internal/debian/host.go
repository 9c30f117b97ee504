package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

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
	// A lock held by another apt is waited for. What an interrupted dpkg has left half done would
	// make apt refuse; where there is nothing of the kind, this does nothing.
	_ = hostCommand(ctx, "dpkg", "--configure", "-a")
	options := []string{"-q", "-oDPkg::Lock::Timeout=600", "-oDir::Cache::archives=" + scratch}
	if err := hostCommand(ctx, "apt-get", append(options, "update")...); err != nil {
		return err
	}
	options = append(options, "install", "-y", "--no-install-recommends")
	return hostCommand(ctx, "apt-get", append(options, missing...)...)
}

// hostCommand changes the host. An interrupt lets it come to a proper end: killing dpkg would
// leave the host's packages half installed.
func hostCommand(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}
