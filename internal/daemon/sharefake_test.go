package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ubcache/attrs/shm"
	"ubcache/ublk"
)

// fakeDriver registers memory as ublk does: it gives out the lowest index that is free, refuses memory
// that it has, and keeps registrations whatever becomes of who made them.
type fakeDriver struct {
	t          *testing.T
	registered map[int]*byte
	asked      []int // indices that it was told to unregister
	die        bool  // the caller dies before it learns of the index
	busy       bool  // I/O does not end, so nothing can be unregistered
	queue      string
}

func newFakeDriver(t *testing.T) *fakeDriver {
	queue := t.TempDir()
	must(t, os.WriteFile(filepath.Join(queue, "nomerges"), []byte("1\n"), 0o600))
	return &fakeDriver{t: t, registered: map[int]*byte{}, queue: queue}
}

func (f *fakeDriver) Path() string { return "/dev/ublkb-of-a-test" }

func (f *fakeDriver) RegisterShared(_ context.Context, mem []byte, _ bool) (int, error) {
	for _, b := range f.registered {
		if b == &mem[0] {
			return 0, unix.EEXIST
		}
	}
	for i := 0; ; i++ {
		if f.registered[i] == nil {
			f.registered[i] = &mem[0]
			if f.die {
				panic(errDied)
			}
			return i, nil
		}
	}
}

var errDied = errors.New("killed")

func (f *fakeDriver) UnregisterShared(_ context.Context, index int) error {
	f.asked = append(f.asked, index)
	if f.busy {
		return context.DeadlineExceeded
	}
	if f.registered[index] == nil {
		return ublk.ErrNotFound
	}
	delete(f.registered, index)
	return nil
}

func (f *fakeDriver) merges() string {
	b, err := os.ReadFile(filepath.Join(f.queue, "nomerges"))
	must(f.t, err)
	return strings.TrimSpace(string(b))
}

// daemonOn is what a daemon has that begins with the device; the one before is dead.
func (f *fakeDriver) daemonOn(record string, recovered bool) *sharing {
	s := &sharing{}
	s.begin(f, f.queue, record, slog.New(slog.DiscardHandler), recovered)
	return s
}

// sharingClient is a client's memory in this process.
type sharingClient struct {
	region *shm.Region
	view   *shm.View
	who    process
}

func newSharingClient(t *testing.T, fill byte) *sharingClient {
	t.Helper()
	r, err := shm.Create(shm.Options{Bytes: 1 << 20})
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	for i := range r.Data() {
		r.Data()[i] = fill
	}
	v, err := shm.Open(r.FD(), 1<<20)
	must(t, err)
	t.Cleanup(func() { _ = v.Close() })
	return &sharingClient{r, v, processOf(unix.Ucred{
		Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()),
	})}
}

// sees wants a view to be of memory with those bytes.
func sees(t *testing.T, v *shm.View, want byte) {
	t.Helper()
	if v == nil {
		t.Fatal("the index is not known")
	}
	var b [1]byte
	if err := v.CopyOut(b[:], 4096); err != nil || b[0] != want {
		t.Errorf("memory has %d, want %d (%v)", b[0], want, err)
	}
}

func (f *fakeDriver) none() {
	f.t.Helper()
	if len(f.registered) != 0 {
		f.t.Errorf("still registered: %v", f.registered)
	}
}

const envHolder = "UBCACHE_TEST_HOLDER"

// TestSharingHolder is a process with memory that says what it is and waits; it closes the descriptor
// if it is told to.
func TestSharingHolder(t *testing.T) {
	if os.Getenv(envHolder) == "" {
		return
	}
	r, err := shm.Create(shm.Options{Bytes: holderBytes})
	must(t, err)
	r.Data()[4096] = holderByte
	id, err := shm.Identify(r.FD())
	must(t, err)
	text, err := json.Marshal(id)
	must(t, err)
	if os.Getenv(envHolder) == "mapped" {
		must(t, unix.Close(r.FD()))
	}
	_, _ = os.Stdout.Write(append(text, '\n'))
	_, _ = io.ReadAll(os.Stdin)
}

const (
	holderByte  = 7
	holderBytes = 1 << 20
)

// holder is a process of TestSharingHolder.
type holder struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.Closer
	buffer sharedBuffer
}

func newHolder(t *testing.T, kind string) *holder {
	t.Helper()
	h := &holder{t: t, cmd: exec.Command(os.Args[0], "-test.run=^TestSharingHolder$")}
	h.cmd.Env = append(os.Environ(), envHolder+"="+kind)
	in, err := h.cmd.StdinPipe()
	must(t, err)
	out, err := h.cmd.StdoutPipe()
	must(t, err)
	must(t, h.cmd.Start())
	h.in = in
	t.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			h.end()
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	must(t, err)
	must(t, json.Unmarshal(line, &h.buffer.Memory))
	h.buffer.DataBytes = holderBytes
	h.buffer.Owner = processOf(unix.Ucred{
		Pid: int32(h.cmd.Process.Pid), Uid: uint32(os.Getuid()),
	})
	return h
}

func (h *holder) end() {
	h.t.Helper()
	must(h.t, h.in.Close())
	must(h.t, h.cmd.Wait())
}
