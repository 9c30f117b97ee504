package client_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMain runs the examples with a cache: a daemon of its own on image files, without ublk, with a
// backing device named data.
func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "ubcache-example-")
	if err == nil {
		err = startCache(dir)
	}
	status := 1
	if err == nil {
		status = m.Run()
		err = inShell(dir, "ubcache stop --force")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cache of the examples:", err)
		status = 1
	}
	_ = os.RemoveAll(os.Getenv("UBCACHE_RUNTIME_DIR"))
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

func startCache(dir string) error {
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "ubcache"), "ubcache/cmd/ubcache")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	// The runtime folder must be on tmpfs.
	run, err := os.MkdirTemp("/dev/shm", "ubcache-example-")
	if err != nil {
		return err
	}
	if err := os.Setenv("UBCACHE_RUNTIME_DIR", run); err != nil {
		return err
	}
	return inShell(dir, `truncate -s 128M ssd; truncate -s 64M disk
		ubcache format ssd --name main
		ubcache start --no-ublk
		ubcache attach disk --name data --mode writeback`)
}

func inShell(dir, script string) error {
	cmd := exec.Command("sh", "-euc", `ubcache() { ./ubcache --config ./ubcache.toml "$@"; }; `+script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
