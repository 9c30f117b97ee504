package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/missed"
)

// Needed lists the files that a daemon uses.
func Needed(o Options) []string {
	paths := []string{o.ConfigPath}
	if exe, err := os.Executable(); err == nil {
		paths = append(paths, exe)
	}
	file, err := config.Load(o.ConfigPath)
	if err != nil {
		return paths // told when the daemon itself reads it
	}
	paths = append(paths, control.RuntimeDir(file.RuntimeDir), missed.Dir(file.StateDir))
	if c := file.Caches[o.Name]; c != nil {
		paths = append(paths, c.Device)
		for _, b := range c.Backings {
			paths = append(paths, b.Device)
		}
	}
	for i, p := range paths {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			paths[i] = real
		}
	}
	return paths
}

const envNamespace = "UBCACHE_OWN_NAMESPACE"

// OwnNamespace gives the process a mount namespace of its own, without mounts on ublk devices: the
// daemon's end could wait for a filesystem that waits for the daemon. What is unmounted in the
// system's namespace afterwards has to go here too, or its device stayed in use. Where mounts are
// shared, as systemd makes them, the kernel sees to that. Others are given up at once, unless one of
// the paths in needed lies on them.
//
// A thread cannot do that for the whole process, so the process executes itself again; it keeps its
// number and its open files. Without the privilege, or where the new namespace cannot be made,
// OwnNamespace returns an error, and the daemon may go on.
func OwnNamespace(needed []string) error {
	if os.Getenv(envNamespace) != "" {
		_ = os.Unsetenv(envNamespace)
		for _, at := range blockdev.Unneeded(needed) {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("own mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts follow the system's: %w", err)
	}
	env := append(os.Environ(), envNamespace+"=1")
	if err := unix.Exec("/proc/self/exe", os.Args, env); err != nil {
		return fmt.Errorf("execute again: %w", err)
	}
	return nil
}
