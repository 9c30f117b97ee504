// Package sys holds the kernel's spelling of ublk: the constants and structures of
// include/uapi/linux/ublk_cmd.h, and nothing else. testdata/abi.golden in the parent directory,
// made by a C program from that header, pins every size, offset and value.
package sys

// Control command numbers, as the header spells them with _IOR and _IOWR.
const (
	CmdGetQueueAffinity  = iocRead | 0x01
	CmdGetDevInfo        = iocRead | 0x02
	CmdAddDev            = iocReadWrite | 0x04
	CmdDelDev            = iocReadWrite | 0x05
	CmdStartDev          = iocReadWrite | 0x06
	CmdStopDev           = iocReadWrite | 0x07
	CmdSetParams         = iocReadWrite | 0x08
	CmdGetParams         = iocRead | 0x09
	CmdStartUserRecovery = iocReadWrite | 0x10
	CmdEndUserRecovery   = iocReadWrite | 0x11
	CmdGetDevInfo2       = iocRead | 0x12
	CmdGetFeatures       = iocRead | 0x13
	CmdDelDevAsync       = iocRead | 0x14
	CmdUpdateSize        = iocReadWrite | 0x15
	CmdQuiesceDev        = iocReadWrite | 0x16
	CmdTryStopDev        = iocReadWrite | 0x17
	CmdRegBuf            = iocReadWrite | 0x18
	CmdUnregBuf          = iocReadWrite | 0x19

	iocRead      = 2<<30 | sizeofCtrlCmd<<16 | 'u'<<8
	iocReadWrite = 3<<30 | sizeofCtrlCmd<<16 | 'u'<<8

	sizeofCtrlCmd = 32
	sizeofIOCmd   = 16
)

// I/O command numbers.
const (
	IOFetchReq          = ioCmd | 0x20
	IOCommitAndFetchReq = ioCmd | 0x21
	IORegisterBuf       = ioCmd | 0x23
	IOUnregisterBuf     = ioCmd | 0x24

	ioCmd = 3<<30 | sizeofIOCmd<<16 | 'u'<<8
)

// Results of a fetch.
const (
	ResOK    = 0
	ResAbort = -19 // -ENODEV
)

// Limits and offsets.
const (
	MaxQueueDepth = 4096
	MaxQueues     = 4096
	FeaturesLen   = 8
	// CmdBufOffset and IOBufOffset are positions in /dev/ublkcN: of the descriptors for mmap, and
	// of the requests' bytes for pread and pwrite.
	CmdBufOffset  = 0
	IOBufOffset   = 0x80000000
	IOBufBits     = 25
	TagOffset     = IOBufBits
	TagBits       = 16
	QueueOffset   = TagOffset + TagBits
	QueueBits     = 12
	IntegrityFlag = 1 << 62

	ShmemOffMask  = 0xffffffff
	ShmemIdxShift = 32
	ShmemIdxMask  = 0xffff
	ShmemReadOnly = 1

	AutoBufRegFallback = 1
	MinSegmentSize     = 4096
)

// Feature flags (UBLK_F_*).
const (
	FSupportZeroCopy     = 1 << 0
	FURingCmdCompInTask  = 1 << 1
	FNeedGetData         = 1 << 2
	FUserRecovery        = 1 << 3
	FUserRecoveryReissue = 1 << 4
	FUnprivilegedDev     = 1 << 5
	FCmdIoctlEncode      = 1 << 6
	FUserCopy            = 1 << 7
	FZoned               = 1 << 8
	FUserRecoveryFailIO  = 1 << 9
	FUpdateSize          = 1 << 10
	FAutoBufReg          = 1 << 11
	FQuiesce             = 1 << 12
	FPerIODaemon         = 1 << 13
	FBufRegOffDaemon     = 1 << 14
	FBatchIO             = 1 << 15
	FIntegrity           = 1 << 16
	FSafeStopDev         = 1 << 17
	FNoAutoPartScan      = 1 << 18
	FShmemZC             = 1 << 19
	FIODescSize          = 1 << 20
)

// Device states (UBLK_S_DEV_*).
const (
	StateDead     = 0
	StateLive     = 1
	StateQuiesced = 2
	StateFailIO   = 3
)

// Operations (UBLK_IO_OP_*).
const (
	OpRead        = 0
	OpWrite       = 1
	OpFlush       = 2
	OpDiscard     = 3
	OpWriteSame   = 4
	OpWriteZeroes = 5
)

// Request flags (UBLK_IO_F_*).
const (
	IOFailfastDev       = 1 << 8
	IOFailfastTransport = 1 << 9
	IOFailfastDriver    = 1 << 10
	IOMeta              = 1 << 11
	IOFUA               = 1 << 13
	IONoUnmap           = 1 << 15
	IOSwap              = 1 << 16
	IONeedRegBuf        = 1 << 17
	IOIntegrity         = 1 << 18
	IOShmemZC           = 1 << 19
)

// Device attributes (UBLK_ATTR_*) and parameter types (UBLK_PARAM_TYPE_*).
const (
	AttrReadOnly      = 1 << 0
	AttrRotational    = 1 << 1
	AttrVolatileCache = 1 << 2
	AttrFUA           = 1 << 3

	ParamBasic     = 1 << 0
	ParamDiscard   = 1 << 1
	ParamDevt      = 1 << 2
	ParamZoned     = 1 << 3
	ParamDMAAlign  = 1 << 4
	ParamSegment   = 1 << 5
	ParamIntegrity = 1 << 6
)

// CtrlCmd is struct ublksrv_ctrl_cmd.
type CtrlCmd struct {
	DevID      uint32
	QueueID    uint16
	Len        uint16
	Addr       uint64
	Data       [1]uint64
	DevPathLen uint16
	Pad        uint16
	Reserved   uint32
}

// DevInfo is struct ublksrv_ctrl_dev_info.
type DevInfo struct {
	NrHWQueues    uint16
	QueueDepth    uint16
	State         uint16
	IODescSize    uint16
	MaxIOBufBytes uint32
	DevID         uint32
	SrvPID        int32
	Pad1          uint32
	Flags         uint64
	SrvFlags      uint64
	OwnerUID      uint32
	OwnerGID      uint32
	Reserved1     uint64
	Reserved2     uint64
}

// IODesc is struct ublksrv_io_desc.
type IODesc struct {
	OpFlags     uint32
	NrSectors   uint32
	StartSector uint64
	Addr        uint64
}

// IOCmd is struct ublksrv_io_cmd.
type IOCmd struct {
	QueueID uint16
	Tag     uint16
	Result  int32
	Addr    uint64
}

// ShmemBufReg is struct ublk_shmem_buf_reg.
type ShmemBufReg struct {
	Addr     uint64
	Len      uint64
	Flags    uint32
	Reserved uint32
}

// Basic is struct ublk_param_basic.
type Basic struct {
	Attrs           uint32
	LogicalBSShift  uint8
	PhysicalBSShift uint8
	IOOptShift      uint8
	IOMinShift      uint8
	MaxSectors      uint32
	ChunkSectors    uint32
	DevSectors      uint64
	VirtBoundary    uint64
}

// Discard is struct ublk_param_discard.
type Discard struct {
	Alignment             uint32
	Granularity           uint32
	MaxSectors            uint32
	MaxWriteZeroesSectors uint32
	MaxSegments           uint16
	Reserved0             uint16
}

// Devt is struct ublk_param_devt.
type Devt struct {
	CharMajor, CharMinor, DiskMajor, DiskMinor uint32
}

// Zoned is struct ublk_param_zoned.
type Zoned struct {
	MaxOpenZones         uint32
	MaxActiveZones       uint32
	MaxZoneAppendSectors uint32
	Reserved             [20]uint8
}

// DMAAlign is struct ublk_param_dma_align.
type DMAAlign struct {
	Alignment uint32
	Pad       [4]uint8
}

// Segment is struct ublk_param_segment.
type Segment struct {
	BoundaryMask uint64
	MaxSize      uint32
	MaxSegments  uint16
	Pad          [2]uint8
}

// Integrity is struct ublk_param_integrity.
type Integrity struct {
	Flags        uint32
	MaxSegments  uint16
	IntervalExp  uint8
	MetadataSize uint8
	PIOffset     uint8
	CsumType     uint8
	TagSize      uint8
	Pad          [5]uint8
}

// Params is struct ublk_params.
type Params struct {
	Len       uint32
	Types     uint32
	Basic     Basic
	Discard   Discard
	Devt      Devt
	Zoned     Zoned
	DMA       DMAAlign
	Seg       Segment
	Integrity Integrity
}
