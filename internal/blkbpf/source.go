package blkbpf

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// MaxQueues is how many queues, of all devices together, a source can track.
const MaxQueues = 1024

// Source is the program on the tracepoint. It works until Close or the end of the process.
type Source struct {
	options
	bits   flagBits
	queues *ebpf.Map // the slots of queues, by their places in the directory
	disks  directory
	prog   *ebpf.Program
	link   link.Link

	mu struct {
		sync.Mutex
		closed bool
	}
}

// Open loads the program and attaches it. The error says in one line what is missing; the caller
// can do without.
func Open() (*Source, error) {
	s, err := open(options{MaxQueues, os.Getpid()})
	if err != nil {
		return nil, fmt.Errorf("BPF on %s: %w", tracepoint, explain(err))
	}
	return s, nil
}

// Probe says whether Open would succeed, by trying it.
func Probe() error {
	s, err := Open()
	if err != nil {
		return err
	}
	return s.Close()
}

// options are what tests have otherwise.
type options struct {
	maxQueues int
	self      int // the process whose requests are not its own
}

func open(o options) (*Source, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	l, err := newLayout(types)
	if err != nil {
		return nil, err
	}
	s := &Source{options: o, bits: l.bits}
	if err := s.load(l); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// load makes the table of queues, loads the program and attaches it.
func (s *Source) load(l *layout) (err error) {
	s.queues, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "ubcache_queues", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4,
		MaxEntries: directorySize, InnerMap: slotsSpec(1),
	})
	if err != nil {
		return fmt.Errorf("make a map: %w", err)
	}
	if s.disks, err = newDirectory(); err != nil {
		return err
	}
	s.prog, err = ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "ubcache_issue", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp,
		AttachTo: tracepoint, Instructions: l.program(s.queues.FD(), s.disks.m.FD(), s.self), License: license,
	}, ebpf.ProgramOptions{})
	if err != nil {
		return fmt.Errorf("load the program: %w", err)
	}
	return s.attach()
}

// attach lets the program run from now on.
func (s *Source) attach() (err error) {
	s.link, err = link.AttachTracing(link.TracingOptions{
		Program: s.prog, AttachType: ebpf.AttachTraceRawTp,
	})
	if err != nil {
		return fmt.Errorf("attach the program: %w", err)
	}
	return nil
}

// slotsSpec is the memory of a queue.
func slotsSpec(depth int) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "ubcache_slots", Type: ebpf.Array, KeySize: 4, ValueSize: slotBytes,
		MaxEntries: uint32(depth), Flags: unix.BPF_F_MMAPABLE | unix.BPF_F_INNER_MAP,
	}
}

// explain adds what to do about an error of open.
func explain(err error) error {
	_, statErr := os.Stat("/sys/kernel/btf/vmlinux")
	switch {
	case errors.Is(err, os.ErrPermission): // EPERM, EACCES
		return fmt.Errorf("%w (needs root, or CAP_BPF and CAP_PERFMON, and no kernel lockdown)", unix.EPERM)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w (the kernel is built without CONFIG_BPF_SYSCALL)", err)
	case statErr != nil:
		return fmt.Errorf("%w (the kernel is built without CONFIG_DEBUG_INFO_BTF)", err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w (the kernel is built without CONFIG_BPF_EVENTS, or older than 6.12)", err)
	}
	return err
}

// Close ends the program. Devices keep their memory until they are closed, and see no new events.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil
	}
	s.mu.closed = true
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	return errors.Join(append(errs, s.prog.Close(), s.queues.Close(), s.disks.close())...)
}
