package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/cmd/ubvm/internal/frame"
)

// drainTime is how long output is still collected after a step's process has ended: a daemon that
// it left behind may hold the pipe open for ever.
const drainTime = 2 * time.Second

// runner executes the steps one after the other.
type runner struct {
	port io.Reader
	out  *frame.Writer
	job  frame.Job

	pid atomic.Int64 // of the running step, or 0
	mu  struct {
		sync.Mutex
		stdin   *os.File // the step's input: a pipe or a terminal's master; nil between steps
		winsize unix.Winsize
	}
	started chan struct{} // closed when the first step has its input
	input   chan []byte   // an empty slice is the end
}

func (r *runner) runAll(first int) error {
	for i := first; i < len(r.job.Steps); i++ {
		status := r.run(r.job.Steps[i])
		status.Step = i
		if err := r.out.WriteJSON(frame.Exit, status); err != nil {
			return fmt.Errorf("report to host: %w", err)
		}
	}
	return nil
}

func (r *runner) run(step frame.Step) frame.Status {
	path, err := exec.LookPath(step.Args[0])
	if err != nil {
		return frame.Status{Code: 127, Text: err.Error()}
	}
	attr := &os.ProcAttr{
		Dir: filepath.Join("/job", step.Dir),
		Env: os.Environ(),
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	if step.Dir == "" {
		attr.Dir = "/root"
	}
	var drained sync.WaitGroup
	var ours []*os.File
	open := r.openPipes
	if r.job.TTY {
		open = r.openTerminal
	}
	ours, err = open(attr, &drained)
	if err != nil {
		return frame.Status{Code: 126, Text: err.Error()}
	}
	p, err := os.StartProcess(path, step.Args, attr)
	for _, f := range attr.Files {
		if f != nil {
			f.Close()
		}
	}
	if err != nil {
		return frame.Status{Code: 126, Text: err.Error()}
	}
	r.pid.Store(int64(p.Pid))
	ws := reap(p.Pid)
	r.pid.Store(0)
	r.setStdin(nil)
	all := make(chan struct{})
	go func() { drained.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(drainTime):
	}
	for _, f := range ours {
		f.Close()
	}
	return status(ws)
}

// openPipes connects a step's three streams to pipes and returns the ends that are ours.
func (r *runner) openPipes(attr *os.ProcAttr, drained *sync.WaitGroup) ([]*os.File, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	attr.Files = []*os.File{inR, outW, errW}
	r.setStdin(inW)
	drained.Go(func() { _, _ = io.Copy(r.out.Stream(frame.Stdout), outR) })
	drained.Go(func() { _, _ = io.Copy(r.out.Stream(frame.Stderr), errR) })
	return []*os.File{inW, outR, errR}, nil
}

// openTerminal gives a step a terminal of its own.
func (r *runner) openTerminal(attr *os.ProcAttr, drained *sync.WaitGroup) ([]*os.File, error) {
	master, err := os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	attr.Files = []*os.File{tty, tty, tty}
	attr.Sys.Setctty = true
	r.setStdin(master)
	drained.Go(func() { _, _ = io.Copy(r.out.Stream(frame.Stdout), master) })
	return []*os.File{master}, nil
}

func (r *runner) setStdin(f *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.stdin = f
	if f == nil {
		return
	}
	if r.job.TTY {
		_ = unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &r.mu.winsize)
	}
	select {
	case <-r.started:
	default:
		close(r.started)
	}
}

// reap waits for one process and for every orphan that dies before it.
func reap(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if got == pid && err == nil {
			return ws
		}
		if errors.Is(err, unix.ECHILD) {
			return 0
		}
	}
}

func status(ws unix.WaitStatus) frame.Status {
	if ws.Signaled() {
		text := "signal: " + ws.Signal().String()
		return frame.Status{Code: 128 + int(ws.Signal()), Text: text}
	}
	return frame.Status{Code: ws.ExitStatus()}
}

// listen takes what the host sends: input, terminal size, and the order to show what is stuck.
func (r *runner) listen() {
	for {
		t, payload, err := frame.Read(r.port)
		if err != nil {
			return
		}
		switch {
		case t == frame.Quit:
			r.showStuck()
		case t == frame.Resize && len(payload) == 4:
			r.resize(unix.Winsize{
				Row: binary.LittleEndian.Uint16(payload), Col: binary.LittleEndian.Uint16(payload[2:]),
			})
		case t == frame.Stdin:
			r.input <- payload
		}
	}
}

func (r *runner) resize(ws unix.Winsize) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.winsize = ws
	if r.mu.stdin != nil {
		_ = unix.IoctlSetWinsize(int(r.mu.stdin.Fd()), unix.TIOCSWINSZ, &ws)
	}
}

// feed passes input on to the running step; a step that does not read holds up only this.
func (r *runner) feed() {
	<-r.started
	for p := range r.input {
		r.mu.Lock()
		stdin := r.mu.stdin
		r.mu.Unlock()
		switch {
		case stdin == nil:
		case len(p) > 0:
			_, _ = stdin.Write(p)
		case !r.job.TTY:
			stdin.Close()
		}
	}
}

// showStuck prints CPU stacks and blocked tasks, which matter most, on the console and makes a Go test dump its
// goroutines.
func (r *runner) showStuck() {
	for _, key := range []string{"l", "w"} {
		_ = os.WriteFile("/proc/sysrq-trigger", []byte(key), 0)
	}
	if pid := int(r.pid.Load()); pid != 0 {
		_ = unix.Kill(pid, unix.SIGQUIT)
	}
}
