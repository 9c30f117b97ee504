package control

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ubcache/internal/report"
)

// EnvRuntimeDir overrides where sockets and pending rings are.
const EnvRuntimeDir = "UBCACHE_RUNTIME_DIR"

// RuntimeDir is where sockets and pending rings are: configured, or below the first of /run and
// /dev/shm that is on tmpfs. Daemon and command come to the same answer.
func RuntimeDir(configured string) string {
	if dir := os.Getenv(EnvRuntimeDir); dir != "" {
		return dir
	}
	if configured != "" {
		return configured
	}
	for _, parent := range []string{"/run", "/dev/shm"} {
		if OnTmpfs(parent) {
			return filepath.Join(parent, "ubcache")
		}
	}
	return "/run/ubcache"
}

// OnTmpfs reports whether a folder is on tmpfs or ramfs.
func OnTmpfs(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

// MakeRuntimeDir makes the folder. Everybody may look into it, as the sockets for clients are there;
// what is not for everybody has a mode that says so. /dev/shm is open to everybody, so a folder that
// somebody else has made there is refused.
func MakeRuntimeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return report.Wrap("make runtime folder", err, "")
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return report.Wrap("make runtime folder", err, "")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return report.Refuse("use runtime folder "+dir,
			fmt.Sprintf("it belongs to user %d or others may write to it", st.Uid),
			"remove it, or set runtime-dir in the configuration")
	}
	if st.Mode&0o055 != 0o055 { // made by an earlier version
		if err := os.Chmod(dir, 0o755); err != nil {
			return report.Wrap("open runtime folder", err, "")
		}
	}
	return nil
}

// SocketPath is the socket of a cache's daemon.
func SocketPath(dir, cache string) string { return filepath.Join(dir, cache+".sock") }
