package blkbpf

import "ubcache/attrs"

// Event is what the kernel knows of a request when it gives it to the driver.
type Event struct {
	IOPrio    uint16 // class, hint, level; 0 if the request has no bio (a flush)
	WriteHint uint8  // RWH_WRITE_LIFE_*; 0 if not set

	Write      bool // also discard and write zeroes
	Readahead  bool // read in advance of its user
	Meta       bool // the filesystem's metadata
	Prio       bool // metadata that somebody waits for
	Background bool // writeback that nobody waits for
	Sync       bool // somebody waits for it

	// Kernel says that a kernel thread issued the request, often for somebody else: a buffered
	// write, a stacked device's worker, a request that waited. PID and UID are the thread's then.
	// So it is with what this process itself issues: the kernel looks for partitions in its name.
	Kernel bool
	PID    uint32 // the process, in the first namespace
	UID    uint32 // its real user, in the first namespace
	Cgroup uint64 // its id, the inode number of its folder; 0 or RootCgroup if there is none in particular
}

// RootCgroup is the id of the root of the hierarchy, where everybody is that nobody has put elsewhere.
const RootCgroup = 1

// plainIOPrio is what a request has whose issuer asked for nothing: class be, level 4, no hint.
const plainIOPrio = 2<<13 | 4

// Silent says that no attribute follows from the event, as from most: the fast way past AddTo.
func (e *Event) Silent() bool {
	return (e.IOPrio == plainIOPrio || e.IOPrio == 0) && !e.hasLifetime() && e.Cgroup <= RootCgroup
}

// hasLifetime says whether the write hint counts. The kernel has the file's on reads too.
func (e *Event) hasLifetime() bool { return e.WriteHint != 0 && e.Write }

// AddTo adds the attributes that follow from the event: hint and priority from [attrs.SourceIOPrio],
// lifetime of a write and tenant (the cgroup, unless it is the root) from [attrs.SourceKernel].
func (e *Event) AddTo(s *attrs.Set) {
	if e.IOPrio != plainIOPrio && e.IOPrio != 0 {
		s.AddIOPrio(e.IOPrio)
	}
	if e.hasLifetime() {
		s.AddWriteHint(e.WriteHint)
	}
	if e.Cgroup > RootCgroup {
		s.AddCgroup(e.Cgroup)
	}
}
