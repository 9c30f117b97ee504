package uring

// SQE is struct io_uring_sqe: one submission of 64 bytes. On a ring made with Options.SQE128 the
// slot is 128 bytes long and the second half follows in memory; see [SQE.Cmd].
type SQE struct {
	Opcode      uint8
	Flags       uint8
	IOPrio      uint16
	FD          int32
	Off         uint64 // also addr2; for URING_CMD the low half is cmd_op
	Addr        uint64
	Len         uint32
	OpFlags     uint32
	UserData    uint64
	BufIndex    uint16
	Personality uint16
	FileIndex   int32
	Addr3       uint64 // also attr_ptr
	attrMask    uint64
}

// CQE is struct io_uring_cqe: one completion. Res is a byte count or a negated errno.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

// PIAttr is struct io_uring_attr_pi: integrity metadata of a read or write.
type PIAttr struct {
	Flags  uint16 // IO_INTEGRITY_CHK_* of linux/fs.h: what the kernel verifies
	AppTag uint16
	Len    uint32 // bytes at Addr
	Addr   uint64 // of the metadata
	Seed   uint64 // reference tag of the first interval
	Rsvd   uint64
}

type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, resv1 uint32
	userAddr                                                uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, resv1 uint32
	userAddr                                                uint64
}

type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sqOff                                                                  sqOffsets
	cqOff                                                                  cqOffsets
}

// Timespec is struct __kernel_timespec.
type Timespec struct{ Sec, Nsec int64 }

// getEventsArg is struct io_uring_getevents_arg.
type getEventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWaitUs uint32
	ts        uint64
}

type rsrcRegister struct {
	nr, flags         uint32
	resv2, data, tags uint64
}

type rsrcUpdate struct {
	offset, resv uint32
	data         uint64
}

type rsrcUpdate2 struct {
	offset, resv uint32
	data, tags   uint64
	nr, resv2    uint32
}

type probeOp struct {
	op, resv uint8
	flags    uint16
	resv2    uint32
}

type probe struct {
	lastOp, opsLen uint8
	resv           uint16
	resv2          [3]uint32
	ops            [256]probeOp
}

// Iovec is struct iovec: memory outside the Go heap.
type Iovec struct {
	Base uintptr
	Len  uint64
}

// Operation codes (enum io_uring_op), those this package prepares.
const (
	OpNop           = 0
	OpWritev        = 2
	OpFsync         = 3
	OpReadFixed     = 4
	OpWriteFixed    = 5
	OpPollAdd       = 6
	OpPollRemove    = 7
	OpTimeout       = 11
	OpTimeoutRemove = 12
	OpAsyncCancel   = 14
	OpFallocate     = 17
	OpRead          = 22
	OpWrite         = 23
	OpFadvise       = 24
	OpMsgRing       = 40
	OpUringCmd      = 46
)

// Submission flags (IOSQE_*).
const (
	SQEFixedFile  = 1 << 0
	SQEDrain      = 1 << 1
	SQELink       = 1 << 2
	SQEQuiet      = 1 << 6
	SQEHardLink   = 1 << 3
	SQEAsync      = 1 << 4
	SQESkipNormal = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS
)

// Completion flags (IORING_CQE_F_*).
const (
	CQEMore = 1 << 1 // the multishot request stays armed
)

// Timeout flags (IORING_TIMEOUT_*).
const (
	TimeoutAbs         = 1 << 0
	TimeoutBoottime    = 1 << 2
	TimeoutRealtime    = 1 << 3
	TimeoutETimeSucess = 1 << 5
	TimeoutMultishot   = 1 << 6
)

// Cancel flags (IORING_ASYNC_CANCEL_*).
const (
	CancelAll      = 1 << 0
	CancelFD       = 1 << 1
	CancelAny      = 1 << 2
	CancelUserData = 1 << 4
	CancelOp       = 1 << 5
)

// Flags of a read or write (RWF_*).
const (
	RWFHiPri  = 0x1
	RWFDSync  = 0x2
	RWFSync   = 0x4
	RWFNoWait = 0x8
)

// attrPI is IORING_RW_ATTR_FLAG_PI.
const attrPI = 1

// BlockCmdDiscard is BLOCK_URING_CMD_DISCARD, _IO(0x12, 0): discard through URING_CMD (Linux 6.12).
const BlockCmdDiscard = 0x1200

const (
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featExtArg     = 1 << 8

	enterGetEvents      = 1 << 0
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4

	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2

	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000

	regBuffers         = 0
	unregBuffers       = 1
	unregFiles         = 3
	regFilesUpdate     = 6
	regProbe           = 8
	regFiles2          = 13
	regBuffers2        = 15
	regBuffersUpdate   = 16
	regIOWQMaxWorkers  = 19
	regRingFDs         = 20
	unregRingFDs       = 21
	rsrcSparse         = 1
	opSupported        = 1
	fsyncDatasync      = 1
	pollAddMulti       = 1
	msgRingFlagsPass   = 1 << 1
	fallocKeepSize     = 1
	fallocPunchHole    = 2
	fallocZeroRange    = 16
	maxRegisteredFiles = 1 << 15
	maxRegisteredBufs  = 1 << 14
)
