package cache

// mutant is a way to break the engine on purpose, so that it can be shown that the simulator notices.
// Each is one condition in the code, which is constant and false unless the program is built with the
// tag mutants.
type mutant uint8

const (
	noMutant mutant = iota
	mutNoFlush
	mutPageBeforeFlush
	mutKeepClean
	mutRemovalVolatile
	mutRecordBeforeData
	mutNoVerify
	mutTargetUnchecked
	mutStaleEpoch
	mutSkipRecord
	mutDiscardUnrecorded
	mutOneSummaryCopy
	mutSummaryUnflushed
	mutSummaryAhead
	mutTailAhead
	mutBucketReused
	mutCleanUnflushed
	mutFillNotCancelled
	mutTornPage
	mutFullMask
	mutRewrittenClean
	mutDetachWrites
	mutPinForgotten
	mutPendingIsClean
	mutStaleDroppedEarly
	mutFillUnflushed
	mutRingUnpublished
	mutBackingUnflushed
	mutOneSuper
	mutEpochKept
	mutDirtyHealed
	mutCleanLost
	mutMergesRace
	mutGroupLost
	mutUnmapUnrecorded
	mutBadKept
	mutMoverBlind
	mutOrderUncut
	mutOrderUnflushed
	mutOrderNewest
	mutOrderTail
	mutOrderOvertaken
	mutMissedUnrecorded
	mutMissedKept
	mutMissedDirty
	mutPendingTrusted
	mutFlushBelieved
	mutNotWrittenAgain
	mutFailedChangeKept
	mutLivesConfused
	mutLossForgotten
	mutLossUnreported
	mutLossUnkept
	mutLossUnrepeated
	mutLateCopyKept
	mutLateCopyUnrecorded
	mutLateCopyUnseen
	mutTailWhileLoading
	mutSalvageRing
	mutSalvageCertain
	mutColdAfterCrash
	mutLossFailsAll
	mutLossFailsWrites
	mutStallIgnored
	mutStallAdmits
	mutStuckKept
	mutBucketNotRetired
	mutReadNotRetired
	numMutants
)

// ignored is for operations of mutants whose outcome nobody waits for.
type ignored struct{}

func (ignored) opDone(*Lane, *Op, error) {}

// dropClean is the start of a mutant that begins cold.
func (r *recovery) dropClean() error {
	var all []record
	for _, b := range r.c.backings.Load() {
		if b != nil {
			all = append(all, record{
				kind: recUnmap, flags: recCleanOnly, backing: b.id, sum: uint32((b.size + BlockSize - 1) / BlockSize),
			})
		}
	}
	return r.appendRecords(all)
}
