// Package ublk serves Linux block devices from user space, through the kernel's ublk driver and
// io_uring, in pure Go.
//
// # Devices
//
// [Create] makes a device /dev/ublkcN in the kernel, and [Device.Start] makes a thread for each of
// its queues and then the disk /dev/ublkbN. A [Handler] serves one queue:
//
//	dev, err := ublk.Create(ublk.Options{ID: -1, Params: ublk.Params{SizeBytes: 64 << 20}})
//	…
//	err = dev.Start(func(queue int) (ublk.Handler, error) { return newHandler(queue), nil })
//	…
//	err = dev.Delete(ctx) // stops it first
//
// For handlers that answer at once there is [HandlerFunc]; the package's example is a RAM disk made
// with it.
//
// # Queues
//
// A queue is a goroutine locked to its thread, with one io_uring for everything: the driver's
// requests, the handler's own I/O, timeouts and wake-ups. A round of the loop is one system call,
// which submits all that the last round prepared and waits. So a handler never blocks and needs no
// other thread: it takes a submission from [Queue.NewSQE], fills it in with one of its Prep
// methods, and calls [Queue.Complete] when [Handler.Completion] tells that the I/O is done. From
// other threads only [Queue.Wake] may be called. Nothing in the library allocates memory, sends on
// a channel or starts a goroutine for a request.
//
// Memory that the kernel uses after a call returned must lie outside the Go heap: take it from
// [NewArena].
//
// # Modes
//
// [Options.Mode] says how a handler gets at the bytes of a request: [Copy] has them in
// Request.Data, with [UserCopy] it copies what it wants with [Queue.CopyOut] and [Queue.CopyIn],
// and with [AutoZeroCopy] the request's pages are buffer Request.BufIndex of the ring, so that a
// read can be passed on without touching its bytes:
//
//	s := q.NewSQE(uint64(r.Tag))
//	s.PrepReadFixed(file, r.BufIndex, 0, uint32(r.Bytes()), uint64(r.Offset()), 0)
//
// Where addresses are expected, such a buffer begins at 0. CopyOut and CopyIn work in every mode.
//
// # Durability
//
// Without Params.VolatileCache the kernel believes that every completed write is durable and sends
// no flushes. With it, a flush must make durable every write completed before the flush arrived,
// and a write with [FUA] must be durable itself.
//
// # Death and recovery
//
// With [Options.Recovery] the disk outlives the server, mounted filesystems included: I/O waits
// until a new process calls [Recover] and Start. [Device.Quiesce] hands over deliberately. With
// [RecoveryReissue] the new server gets requests again that the old one may have carried out
// already, so that they must be idempotent, which plain reads and writes are.
//
// Recover does not succeed before all I/O is over that the dead server had submitted through its
// queues' rings, as each of these holds a reference to the device. I/O of other rings, libaio or
// the network has no such fence.
//
// A panic in Handler.Handle fails its request with EIO and is reported to Options.OnError. A panic
// in the other methods of a handler may have left any request unanswered, and those would hang for
// ever, so that it ends the process; see Options.OnFatal.
//
// # Privileges
//
// The process needs CAP_SYS_ADMIN and the module ublk_drv, Linux 6.12 or newer. [Probe] tells what
// the running kernel supports; what it does not is refused with an [UnsupportedError]. A server
// should not keep filesystems on its own devices mounted in its own mount namespace (unshare), or
// its exit may wait for itself.
package ublk
