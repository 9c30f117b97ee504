// Package blkbpf reads what ublk does not hand on of a request: its I/O priority with the hint in
// it, its write hint, its kind (readahead, metadata, background), and who issued it. So programs
// that know nothing of ubcache can say something about their requests, with ionice(1), fio's
// cmdprio, fcntl(F_SET_RW_HINT) or ubcache run.
//
// A BPF program on the kernel's tracepoint block_rq_issue, which a request passes before its driver
// sees it, writes them to a slot of memory that this process has mapped: one for each tag of each
// queue of the tracked disks. So the queue's thread finds the slot filled when the request
// arrives, and reads it without a system call. Nothing is written of a request from which no attribute follows, as
// from most, unless somebody asks for all (Device.ShowAll), as rules do. For all other disks the program ends after a
// look into a hash table, of a few instructions (directory.go).
//
//	src, err := blkbpf.Open()      // an error says what is missing; one can do without
//	dev, err := src.Track("ublkb0", queues, depth)
//	…
//	e, ok := dev.Lookup(queue, tag, sector, sectors)   // once for each request
//	if ok {
//		e.AddTo(&set)
//	}
//
// The program is assembled here, with the places of the fields that the running kernel's own type
// information (BTF) gives; there is nothing to compile. It needs Linux 6.12 or newer, root or
// CAP_BPF and CAP_PERFMON, and ends with the process.
//
// # What a slot says
//
// A slot is read once and empty afterwards. Where the program did not see a request the slot is empty
// or an old one, whose position and length differ: Lookup finds nothing then, never another
// request's values. That happens to requests that were issued before Track, and in rare cases when
// the kernel does not run the program because it interrupted itself. What a dead server left
// unanswered is issued again to its successor, and is seen if Track came before the device was started.
//
// A request of several bios has the first one's values. The kernel merges only what has the same
// I/O priority, write hint and cgroup, but metadata and readahead may be merged with others.
//
// The cgroup is the one on whose account the kernel books the request, which holds for buffered
// writes too, although a kernel thread issues them. That needs the cgroup's io controller (and the
// memory controller for buffered writes); where it is off, and the request is booked on the root, the
// cgroup is that of the issuing task.
package blkbpf
