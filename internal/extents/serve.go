package extents

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Serve is the process of a [Client]: it watches what in tells it to, and writes what it finds to out,
// until in ends. The process should end then, whatever its goroutines wait for.
func Serve(in io.Reader, out io.Writer) error {
	enc := gob.NewEncoder(out)
	failed := make(chan error, 1)
	r, err := NewResolver(func(u Update) {
		if err := enc.Encode(u); err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	})
	if err != nil {
		return err
	}
	// The resolver may be busy for long, so commands wait in a list, not in the pipe.
	commands := make(chan command, 1<<10)
	go func() {
		for c := range commands {
			if c.Watch != nil {
				r.Watch(*c.Watch)
			} else {
				r.Drop(c.Drop)
			}
		}
	}()
	go func() {
		dec := gob.NewDecoder(in)
		for {
			var c command
			if err := dec.Decode(&c); err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				failed <- err
				return
			}
			commands <- c
		}
	}()
	return <-failed
}

const envMounts = "UBCACHE_MOUNTS"

// SeeMounts makes the process see the mounts that another one sees, of the system if it is process 1:
// the daemon that starts it has a mount namespace of its own. A thread can only do that for itself, so
// the process executes itself again. It returns an error if the process goes on as it is.
func SeeMounts(pid int) error {
	if os.Getenv(envMounts) != "" {
		_ = os.Unsetenv(envMounts)
		return nil
	}
	what := fmt.Sprintf("see the mounts of process %d", pid)
	system := fmt.Sprintf("/proc/%d/ns/mnt", pid)
	want, err := os.Readlink(system)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if have, err := os.Readlink("/proc/self/ns/mnt"); err == nil && have == want {
		return nil
	}
	fd, err := unix.Open(system, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	runtime.LockOSThread()
	if err = unix.Unshare(unix.CLONE_FS); err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNS)
	}
	_ = unix.Close(fd)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("%s: %w", what, err)
	}
	env := append(os.Environ(), envMounts+"=1")
	return unix.Exec("/proc/self/exe", os.Args, env)
}
