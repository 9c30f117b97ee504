package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/internal/daemon"
	"ubcache/internal/extents"
	"ubcache/internal/extents/loopmount"
)

// TestWatchFiles runs the process that watches files as a daemon does, from a mount namespace of its
// own. What is mounted later elsewhere is not seen there, so it has to find its way out.
func TestWatchFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has mount namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	updates := make(chan extents.Update, 100)
	c := extents.NewClient(func() *exec.Cmd {
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", self,
			daemon.WatchFilesCommand, fmt.Sprintf("--mounts-of=%d", os.Getpid()))
		cmd.Env, cmd.Stderr = append(os.Environ(), envMain+"=1"), os.Stderr
		return cmd
	}, func(u extents.Update) { updates <- u })
	t.Cleanup(c.Close)
	next := func() extents.Update {
		t.Helper()
		select {
		case u := <-updates:
			return u
		case <-time.After(10 * time.Second):
			t.Fatal("no update")
			return extents.Update{}
		}
	}
	// By the first answer it is in its namespace, or out of it.
	c.Watch(extents.Spec{ID: 1, Path: "/proc/self/stat", Target: extents.Device{Major: 1, Minor: 1}})
	if u := next(); u.Found || u.Problem == "" {
		t.Fatalf("a file on no device: %+v", u)
	}
	m := loopmount.New(t, false)
	m.Write("a", "a", 3)
	var st unix.Stat_t
	if err := unix.Stat(m.Loop, &st); err != nil {
		t.Fatal(err)
	}
	c.Watch(extents.Spec{ID: 2, Path: m.Path("a"), Target: extents.DeviceOf(st.Rdev)})
	for {
		u := next()
		if u.ID == 1 || u.Looking {
			continue
		}
		if !u.Found || u.Files != 1 || len(u.Ranges) == 0 {
			t.Errorf("a file that was mounted later: %+v", u)
		}
		break
	}
}
