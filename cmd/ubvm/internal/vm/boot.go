package vm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ubcache/cmd/ubvm/internal/frame"
)

const (
	// bootTime is how long a guest may take until its init starts the job: seconds, but on a host
	// that is busy with others' guests.
	bootTime = 2 * time.Minute
	// offTime is how long a guest may take to power off once its results are safe.
	offTime = 15 * time.Second
	// dumpTime is how long it may take to show what is stuck when its time is up.
	dumpTime = 8 * time.Second
	// settleTime lets the kernel finish its report after the first line of a fault.
	settleTime = 3 * time.Second
)

// session is one boot.
type session struct {
	*run
	console *console
	port    atomic.Pointer[frame.Writer]
	ended   chan struct{} // closed when QEMU has ended
	err     error         // of QEMU, once it has ended
	ready   chan struct{} // closed when the guest's init starts the job
	done    chan struct{} // closed when the guest says that the job is done
	fault   chan string   // the guest's init cannot go on
}

// bootOnce boots the guest and stays with it until it ends. It reports whether the job is done;
// not done and no error means that the guest was reset.
func (r *run) bootOnce(ctx context.Context, boot int) (done bool, err error) {
	con, err := newConsole(r.path("console"))
	if err != nil {
		return false, err
	}
	defer con.file.Close()
	os.Remove(r.path("port"))
	listener, err := net.Listen("unix", r.path("port"))
	if err != nil {
		return false, fmt.Errorf("listen for guest: %w", err)
	}
	defer listener.Close()
	os.Remove(r.path("qmp"))
	plugs, err := newPlugger(r)
	if err != nil {
		return false, err
	}
	defer plugs.close()
	s := &session{
		run: r, console: con,
		ended: make(chan struct{}), ready: make(chan struct{}),
		done: make(chan struct{}), fault: make(chan string, 1),
	}
	var stderr strings.Builder
	cmd := exec.Command("qemu-system-x86_64", r.qemuArgs(boot, len(r.status))...)
	cmd.Stdout = con
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "TMPDIR="+r.dir) // snapshots go there
	// Own process group: Ctrl-C reaches us alone, and QEMU never outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("start QEMU: %w", err)
	}
	go func() { defer close(s.ended); s.err = cmd.Wait() }()
	served := make(chan struct{})
	go func() { defer close(served); s.serve(listener, boot) }()
	what, err := s.wait(ctx)
	_ = cmd.Process.Kill() // it may have ended already
	<-s.ended
	listener.Close()
	<-served
	switch {
	case err != nil:
		return false, fmt.Errorf("QEMU: %w: %s", err, strings.TrimSpace(stderr.String()))
	case con.Fault() != "":
		e := r.guestError("kernel failed: " + con.Fault())
		r.blame(e, s.isReady())
		return false, e
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return false, r.guestError(fmt.Sprintf("did not finish within %s", r.config.Timeout))
	case ctx.Err() != nil:
		return false, ctx.Err()
	case what != "":
		e := r.guestError(what)
		e.spoilt = s.config.Accel == TCG && what == didNotBoot
		return false, e
	}
	select {
	case <-s.done:
		return true, nil
	default:
		return false, nil
	}
}

// wait returns when this boot is over: QEMU has ended, or it must be killed because of what.
func (s *session) wait(ctx context.Context) (what string, qemu error) {
	done, ready := s.done, s.ready
	booting := time.After(bootTime)
	var off <-chan time.Time
	for {
		select {
		case <-s.ended:
			return "", s.err
		case <-done:
			done, off = nil, time.After(offTime)
		case <-off:
			// The results are safe. A guest that cannot power off any more, because a test left a
			// device behind whose server is gone, has failed no test.
			return "", nil
		case text := <-s.fault:
			return "init: " + text, nil
		case <-s.console.faulted:
			s.sleep(settleTime)
			return "kernel failed", nil
		case <-ctx.Done():
			if port := s.port.Load(); port != nil &&
				errors.Is(ctx.Err(), context.DeadlineExceeded) {
				_ = port.Write(frame.Quit, nil)
				s.sleep(dumpTime)
			}
			return "time is up", nil
		case <-booting:
			return didNotBoot, nil
		case <-ready:
			booting, ready = nil, nil
		}
	}
}

// didNotBoot is what is said of a guest that took too long. Under emulation some boots hang for good when
// the second CPU starts.
var didNotBoot = fmt.Sprintf("did not boot within %s", bootTime)

// isReady tells whether the guest's init has started the job.
func (s *session) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// sleep waits, but not for a QEMU that has ended.
func (s *session) sleep(d time.Duration) {
	select {
	case <-s.ended:
	case <-time.After(d):
	}
}

// serve talks to the guest's init until its port closes.
func (s *session) serve(listener net.Listener, boot int) {
	conn, err := listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	port := frame.NewWriter(conn)
	s.port.Store(port)
	for {
		t, payload, err := frame.Read(conn)
		if err != nil {
			return
		}
		switch t {
		case frame.Ready:
			var b frame.Boot
			if json.Unmarshal(payload, &b) == nil && s.config.OnReady != nil {
				s.config.OnReady(b, boot)
			}
			close(s.ready)
			if boot == 1 {
				go s.feed(port)
			}
		case frame.Stdout:
			_, _ = s.config.Stdout.Write(payload)
		case frame.Stderr:
			_, _ = s.config.Stderr.Write(payload)
		case frame.Exit:
			var st frame.Status
			if json.Unmarshal(payload, &st) == nil {
				s.status = append(s.status, st)
				if s.config.OnExit != nil {
					s.config.OnExit(s.config.Job.Steps[st.Step], st)
				}
			}
		case frame.Fault:
			s.fault <- string(payload)
		case frame.Done:
			close(s.done)
		}
	}
}

// feed sends the guest its input and the terminal's size.
func (s *session) feed(port *frame.Writer) {
	go func() {
		for size := range s.config.Resizes {
			var b [4]byte
			binary.LittleEndian.PutUint16(b[:], size[0])
			binary.LittleEndian.PutUint16(b[2:], size[1])
			if port.Write(frame.Resize, b[:]) != nil {
				return
			}
		}
	}()
	if s.config.Stdin != nil {
		_, _ = io.Copy(port.Stream(frame.Stdin), s.config.Stdin)
	}
	_ = port.Write(frame.Stdin, nil)
}
