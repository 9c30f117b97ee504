package ublk

import (
	"fmt"
	"slices"
	"strings"

	"ubcache/ublk/internal/sys"
)

// Features is a set of driver features (UBLK_F_* of linux/ublk_cmd.h).
type Features uint64

// Features of the driver. The comments of [Feature] list what each needs.
const (
	FeatureZeroCopy        Features = sys.FSupportZeroCopy
	FeatureNeedGetData     Features = sys.FNeedGetData
	FeatureRecovery        Features = sys.FUserRecovery
	FeatureRecoveryReissue Features = sys.FUserRecoveryReissue
	FeatureUnprivileged    Features = sys.FUnprivilegedDev
	FeatureIoctlEncode     Features = sys.FCmdIoctlEncode
	FeatureUserCopy        Features = sys.FUserCopy
	FeatureZoned           Features = sys.FZoned
	FeatureRecoveryFailIO  Features = sys.FUserRecoveryFailIO
	FeatureUpdateSize      Features = sys.FUpdateSize
	FeatureAutoBuffers     Features = sys.FAutoBufReg
	FeatureQuiesce         Features = sys.FQuiesce
	FeaturePerIODaemon     Features = sys.FPerIODaemon
	FeatureBufOffDaemon    Features = sys.FBufRegOffDaemon
	FeatureBatchIO         Features = sys.FBatchIO
	FeatureIntegrity       Features = sys.FIntegrity
	FeatureSafeStop        Features = sys.FSafeStopDev
	FeatureNoPartScan      Features = sys.FNoAutoPartScan
	FeatureSharedMemory    Features = sys.FShmemZC
	FeatureIODescSize      Features = sys.FIODescSize
)

// Feature describes one bit of Features.
type Feature struct {
	Bit        Features
	Name       string // as in the kernel's header, without UBLK_F_
	NeedsLinux string // first release of kernel.org that has it working
	Gives      string // in a few words
}

var featureTable = []Feature{
	{FeatureZeroCopy, "SUPPORT_ZERO_COPY", "6.15", "requests as io_uring buffers, by command"},
	{sys.FURingCmdCompInTask, "URING_CMD_COMP_IN_TASK", "6.0", "nothing any more"},
	{FeatureNeedGetData, "NEED_GET_DATA", "6.0", "late write buffers"},
	{FeatureRecovery, "USER_RECOVERY", "6.1", "device outlives its server"},
	{FeatureRecoveryReissue, "USER_RECOVERY_REISSUE", "6.1", "requests of a dead server run again"},
	{FeatureUnprivileged, "UNPRIVILEGED_DEV", "6.3", "servers without CAP_SYS_ADMIN"},
	{FeatureIoctlEncode, "CMD_IOCTL_ENCODE", "6.4", "the commands this package sends"},
	{FeatureUserCopy, "USER_COPY", "6.5", "pread and pwrite of request data"},
	{FeatureZoned, "ZONED", "6.6", "zoned devices"},
	{FeatureRecoveryFailIO, "USER_RECOVERY_FAIL_IO", "6.13", "I/O fails while no server runs"},
	{FeatureUpdateSize, "UPDATE_SIZE", "6.16", "resizing of a live device"},
	{FeatureAutoBuffers, "AUTO_BUF_REG", "6.16", "requests as io_uring buffers, by itself"},
	{FeatureQuiesce, "QUIESCE", "6.16", "hand-over to a new server"},
	{FeaturePerIODaemon, "PER_IO_DAEMON", "6.16", "several threads for a queue"},
	{FeatureBufOffDaemon, "BUF_REG_OFF_DAEMON", "6.17", "buffer registration from any thread"},
	{FeatureBatchIO, "BATCH_IO", "7.0", "commands in batches"},
	{FeatureIntegrity, "INTEGRITY", "7.0", "protection information"},
	{FeatureSafeStop, "SAFE_STOP_DEV", "7.0", "stop only if nobody has it open"},
	{FeatureNoPartScan, "NO_AUTO_PART_SCAN", "7.0", "no partition scan at start"},
	{FeatureSharedMemory, "SHMEM_ZC", "7.1", "client and server share I/O memory"},
	{FeatureIODescSize, "IO_DESC_SIZE", "7.3", "room for longer descriptors"},
}

// FeatureList describes every feature that this package has a name for, in order of their bits.
func FeatureList() []Feature { return append([]Feature(nil), featureTable...) }

// Has reports whether all features of want are in f.
func (f Features) Has(want Features) bool { return f&want == want }

// String lists the names, separated by commas; bits without a name are in hexadecimal.
func (f Features) String() string {
	var names []string
	for _, t := range featureTable {
		if f&t.Bit != 0 {
			names = append(names, t.Name)
			f &^= t.Bit
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	return strings.Join(names, ",")
}

// require returns an *UnsupportedError for the newest feature of want that f lacks.
func (f Features) require(want Features) error {
	missing := want &^ f
	for _, t := range slices.Backward(featureTable) {
		if missing&t.Bit != 0 {
			return &UnsupportedError{Feature: t.Name, NeedsLinux: t.NeedsLinux}
		}
	}
	if missing != 0 {
		return &UnsupportedError{Feature: missing.String()}
	}
	return nil
}

// UnsupportedError says that the running kernel lacks a feature.
type UnsupportedError struct {
	Feature    string
	NeedsLinux string // empty if unknown
}

func (e *UnsupportedError) Error() string {
	if e.NeedsLinux == "" {
		return fmt.Sprintf("ublk: %s is not supported by this kernel", e.Feature)
	}
	return fmt.Sprintf("ublk: %s is not supported by this kernel (needs Linux ≥ %s)",
		e.Feature, e.NeedsLinux)
}
