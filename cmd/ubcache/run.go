package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ubcache/attrs"
	"ubcache/internal/report"
)

// Exit statuses of a command that does not run, as env(1) and nice(1) have them.
const (
	cannotRun report.Code = 126
	notFound  report.Code = 127
)

// The kernel's numbers: see ioprio_set(2), sched(7).
const (
	ioprioWhoProcess = 1
	ioprioClassShift = 13
	schedIdle        = 5
)

type runFlags struct{ hint, prio string }

func runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [--hint HINT] [--prio CLASS[/LEVEL]] [--] COMMAND [ARGUMENT]…",
		Short: "Run a command whose I/O carries a cache hint or a priority",

		DisableFlagsInUseLine: true,

		Long: `Run executes a command with an I/O priority that tells the cache what to do with its requests, those
of its children among them. The command needs not know of it; its exit status is that of run.

  --hint  default   as the device's policy says, whatever rules say
          cache     take the data into the cache now
          bypass    leave the cache as it is
          once      serve from the cache, but drop the data first
          pin       keep the data cached (within the quota)
          unpin     end that
          evict     write the data back and drop it
          prefetch  bring the data in
  --prio  rt, be or idle, with a level from 0 (first) to 7 [4, of idle 0]; rt needs
          root

The tag goes with all that the command reads, and with what it writes with O_DIRECT, O_SYNC or fsync.
What the kernel writes later, by itself, has none. Without --prio the command keeps its priority.

On the cached device the tag takes effect if its daemon can load BPF: see ubcache features. On
other devices the hint does nothing.

Exit status: that of the command; 126 if it cannot be executed, 127 if there is none, 2 for wrong
usage, 1 if the priority cannot be set.`,
		Example: "  ubcache run --hint bypass -- tar -cf /backup/srv.tar /srv\n" +
			"  ubcache run --prio idle -- updatedb",
		Args: args(cobra.ArbitraryArgs),
		RunE: func(_ *cobra.Command, a []string) error { return f.run(a) },
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // the command's flags are its own
	fs.StringVar(&f.hint, "hint", "", "cache hint")
	fs.StringVar(&f.prio, "prio", "", "priority: class and level")
	return cmd
}

// run becomes the command; it returns only if that fails.
func (f *runFlags) run(command []string) error {
	if len(command) == 0 {
		return report.Misuse("no command to run (see ubcache run --help)")
	}
	set, err := f.set()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return notRunnable(command[0], err)
	}
	// A priority is a thread's, and the thread that executes another program keeps its own.
	runtime.LockOSThread()
	if err := setIOPrio(&set); err != nil {
		return err
	}
	return notRunnable(command[0], unix.Exec(path, command, os.Environ()))
}

// set is what the flags ask for.
func (f *runFlags) set() (set attrs.Set, err error) {
	if f.hint == "" && f.prio == "" {
		return set, report.Misuse("nothing to tag the command with: give --hint or --prio")
	}
	if f.hint != "" {
		if err := addFlag(&set, attrs.IDHint, "--hint", f.hint); err != nil {
			return set, err
		}
	}
	if prio := f.prio; prio != "" {
		if prio == attrs.ClassRT.String() || prio == attrs.ClassBE.String() {
			prio += "/4"
		}
		if err := addFlag(&set, attrs.IDPriority, "--prio", prio); err != nil {
			return set, err
		}
	}
	return set, nil
}

// addFlag adds the value of a flag to the set.
func addFlag(set *attrs.Set, id attrs.ID, flag, value string) error {
	text := id.String() + "=" + value
	one, err := attrs.ParseSet(text)
	if err == nil && (strings.Contains(value, ",") || !one.Has(id)) {
		err = errors.New("more than one value")
	}
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause
		}
		return report.Misuse("%s %s: %v", flag, value, err)
	}
	set.Merge(&one)
	return nil
}

// setIOPrio tags this thread.
func setIOPrio(set *attrs.Set) error {
	if !set.Has(attrs.IDPriority) {
		p, err := priority()
		if err != nil {
			return report.Wrap("read the I/O priority", err, "")
		}
		set.SetPriority(p)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, uintptr(set.IOPrio()))
	switch {
	case errno == 0:
		return nil
	case errno == unix.EPERM && set.Priority().Class == attrs.ClassRT:
		return report.Wrap("set I/O priority "+set.Priority().String(), errno,
			"class rt needs root or CAP_SYS_NICE; take be/0")
	}
	return report.Wrap("set I/O priority "+set.Priority().String(), errno, "")
}

// priority is the class and level that this thread's I/O has so far: what was set, or else what the
// kernel makes of the CPU priority. A hint alone must not change it, but the kernel has no
// hints without a class.
func priority() (attrs.Priority, error) {
	v, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0)
	if errno != 0 {
		return attrs.Priority{}, errno
	}
	if class := attrs.Class(v >> ioprioClassShift); class != 0 {
		return attrs.Priority{Class: class, Level: uint8(v & 7)}, nil
	}
	sched, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return attrs.Priority{}, err
	}
	p := attrs.Priority{Class: attrs.ClassBE, Level: uint8((sched.Nice + 20) / 5)}
	if sched.Policy == schedIdle {
		p.Class = attrs.ClassIdle
	}
	return p, nil
}

// notRunnable says why a command could not be executed.
func notRunnable(name string, err error) error {
	e := report.Wrap("run "+name, cause(err), "")
	e.Code = cannotRun
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		e.Code = notFound
	}
	return e
}

// cause is the last part of an error, without the name that is told already.
func cause(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
