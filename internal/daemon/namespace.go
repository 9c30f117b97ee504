package daemon

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"ubcache/internal/blockdev"
)

const envNamespace = "UBCACHE_OWN_NAMESPACE"

// OwnNamespace gives the process a mount namespace of its own, without mounts on ublk devices: as
// long as the daemon had a filesystem on its own device mounted, nobody could unmount it, and the
// daemon's end could wait for itself. A thread cannot do that for the whole process, so the
// process executes itself again; it keeps its number and its open files.
//
// Without the privilege, or where the new namespace cannot be made, it returns an error, and the
// daemon may go on.
func OwnNamespace() error {
	if os.Getenv(envNamespace) != "" {
		_ = os.Unsetenv(envNamespace)
		for _, at := range blockdev.MountsOnUblk() {
			if at != "/" {
				_ = unix.Unmount(at, unix.MNT_DETACH)
			}
		}
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("own mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	env := append(os.Environ(), envNamespace+"=1")
	if err := unix.Exec("/proc/self/exe", os.Args, env); err != nil {
		return fmt.Errorf("execute again: %w", err)
	}
	return nil
}
