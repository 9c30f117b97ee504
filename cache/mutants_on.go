//go:build mutants

package cache

// Histories that catch a mutant sooner than others.
const (
	inOrdered = "ordered"   // devices are ordered
	inVanish  = "vanish"    // the SSD vanishes
	inGone    = "gone"      // backing devices go away
	inPins    = "pins"      // much is pinned
	inBoth    = "both fail" // flushes of the SSD fail, and changes of backing devices
)

// mutants says what each of them does. Some matter only together with a fault or in a race.
var mutants = [numMutants]struct{ name, what, in string }{
	noMutant:             {"none", "nothing is broken", ""},
	mutNoFlush:           {"flush-not-sent", "a commit does not flush the SSD before it writes its pages", ""},
	mutPageBeforeFlush:   {"page-before-flush", "a commit writes its pages beside the flush, not after it", ""},
	mutKeepClean:         {"invalidate-forgotten", "a write past the cache leaves the clean copy", ""},
	mutRemovalVolatile:   {"invalidate-volatile", "it does not wait until the removal is durable", ""},
	mutRecordBeforeData:  {"record-before-data", "the index changes before the data is written", ""},
	mutTargetUnchecked:   {"target-unchecked", "what is read into a client's memory is not checked", ""},
	mutNoVerify:          {"checksum-not-verified", "what the SSD returns is taken as it is", ""},
	mutStaleEpoch:        {"stale-epoch-accepted", "journal pages of an earlier epoch are replayed after later ones", ""},
	mutSkipRecord:        {"recovery-off-by-one", "the last record of a journal page is not replayed", ""},
	mutDiscardUnrecorded: {"discard-resurrected", "what a change removes is not recorded as removed", ""},
	mutOneSummaryCopy:    {"summary-copy-b-skipped", "a checkpoint writes one copy of the summaries", ""},
	mutSummaryUnflushed:  {"summary-copies-unflushed", "a checkpoint does not flush between the copies", ""},
	mutSummaryAhead:      {"summary-lsn-wrong", "a summary claims records that it has not", ""},
	mutTailAhead:         {"tail-too-early", "replay starts after records that no summary has", ""},
	mutBucketReused:      {"bucket-reused-early", "a bucket is reused before its free record is durable", ""},
	mutCleanUnflushed:    {"clean-without-flush", "pending blocks become clean without a backing flush", ""},
	mutFillNotCancelled:  {"fill-not-cancelled", "a write does not cancel the fill that it overtakes", ""},
	mutTornPage:          {"torn-page-accepted", "a journal page is not checked", ""},
	mutFullMask:          {"mask-wrong", "a block that is written in part counts as whole", ""},
	mutRewrittenClean:    {"rewritten-clean", "writeback cleans a block that was rewritten meanwhile", ""},
	mutDetachWrites:      {"detach-over-writes", "a detach does not wait for writeback", ""},
	mutPinForgotten:      {"pin-forgotten", "recovery forgets pins", ""},
	mutPendingIsClean:    {"pending-recorded-clean", "a written-through copy is clean on record at once", ""},
	mutStaleDroppedEarly: {"stale-dropped-early", "an obsolete dirty copy is removed before the backing flush", ""},
	mutFillUnflushed:     {"fill-unflushed-clean", "what is read near unflushed writes is clean on record", ""},
	mutRingUnpublished:   {"ring-unpublished", "records are not published in the pending ring", ""},
	mutBackingUnflushed:  {"backing-flush-forgotten", "FLUSH does not flush the backing device", ""},
	mutOneSuper:          {"one-superblock", "only one copy of the superblock is brought up to date", ""},
	mutEpochKept:         {"epoch-kept", "a start does not begin a new epoch", ""},
	mutDirtyHealed:       {"dirty-healed", "a dirty block that the SSD lost is read from the backing device", ""},
	mutCleanLost:         {"clean-lost", "a clean block that the SSD lost is an error", ""},
	mutMergesRace:        {"merges-race", "two writes of parts of a block do not exclude each other", ""},
	mutGroupLost:         {"neighbours-lost", "a bad sector takes along what was read with it", ""},
	mutUnmapUnrecorded:   {"heal-unrecorded", "the removal of a damaged clean copy is not recorded", ""},
	mutBadKept:           {"bad-and-clean", "a block stays bad when writeback has saved it", ""},

	mutMoverBlind: {"mover-blind", "a moved block replaces what was written meanwhile", inPins},

	mutOrderUncut:     {"order-uncut", "a batch does not end where a FLUSH was acknowledged", inOrdered},
	mutOrderUnflushed: {"order-unflushed", "the backing device is not flushed between two batches", inOrdered},
	mutOrderNewest:    {"order-newest", "a block is written back in its newest version in the turn of an older one", inOrdered},
	mutOrderTail:      {"order-tail-early", "replay starts after what is still queued", inOrdered},
	mutOrderOvertaken: {"order-overtaken", "a change past the cache does not wait for what was queued before", inOrdered},

	mutMissedUnrecorded: {"missed-unrecorded", "changes that a lost SSD misses need no marker", inVanish},
	mutMissedKept:       {"missed-kept", "an SSD that has missed changes is taken back with what it has of them", inVanish},
	mutMissedDirty:      {"missed-dirty", "a marker does not tell of dirty data", inVanish},
	mutPendingTrusted:   {"pending-trusted", "what an SSD was not flushed for counts as there when it is back", inVanish},

	mutFlushBelieved:   {"flush-believed", "after a flush of the SSD that has failed the next one counts", ""},
	mutNotWrittenAgain: {"not-written-again", "what a failed flush was to cover is not written again", ""},

	mutFailedChangeKept:   {"failed-change-kept", "a failed change leaves the pending ring as it was", inBoth},
	mutLivesConfused:      {"lives-confused", "what is known of an earlier use of a slot counts for what it has now", ""},
	mutLossForgotten:      {"loss-forgotten", "what a backing device may have lost is not written back again", inGone},
	mutLossUnreported:     {"loss-unreported", "no FLUSH fails for what a backing device has lost", inGone},
	mutLossUnkept:         {"loss-unkept", "a loss that no FLUSH has told of is forgotten when the daemon is killed", inGone},
	mutLossUnrepeated:     {"loss-unrepeated", "a change that a loss has overtaken is not made again", inGone},
	mutLateCopyKept:       {"late-copy-kept", "a copy that is loaded late is taken though the block was changed meanwhile", ""},
	mutLateCopyUnrecorded: {"late-copy-unrecorded", "the removal of copies that are not loaded yet is not recorded", ""},
	mutLateCopyUnseen:     {"late-copy-volatile", "writeback does not wait until such a copy is replaced on record", ""},
	mutTailWhileLoading:   {"tail-moves-while-loading", "the journal's tail moves before everything is loaded", ""},
	mutSalvageRing:        {"salvage-ring", "a salvage forgets the pending ring of a killed daemon", ""},
	mutSalvageCertain:     {"salvage-certain", "a salvage takes what it finds for the newest though records are lost", ""},
	mutLossFailsAll:       {"loss-fails-all", "without the SSD every read of a device with dirty data fails", inVanish},
	mutLossFailsWrites:    {"loss-fails-writes", "without the SSD every change of a device with dirty data fails", inVanish},
	mutStallIgnored:       {"stall-ignored", "reads of what the backing device has wait for a slow SSD", inVanish},
	mutStallAdmits:        {"stall-admits", "what is read while the SSD is slow is admitted", inVanish},
	mutStuckKept:          {"stuck-kept", "reads that a slow SSD has begun are not let go of", inVanish},
	mutBucketNotRetired:   {"bucket-not-retired", "a bucket that the SSD has failed is used again", ""},
	mutReadNotRetired:     {"read-not-retired", "a bucket with a block that cannot be read by itself is used again", ""},
	mutColdAfterCrash:     {"cold-after-crash", "a start after a crash with nothing in the pending ring drops what is clean", ""},
}

// broken is how all caches of the process are broken.
var broken mutant

func mutated(m mutant) bool { return m == broken }

// Mutant describes a mutant: its name, what it does, and in which histories it shows, if not in all.
type Mutant struct{ Name, What, In string }

// Mutants lists the mutants.
func Mutants() (all []Mutant) {
	for _, m := range mutants[1:] {
		all = append(all, Mutant{m.name, m.what, m.in})
	}
	return all
}

// Mutate breaks the engine in that way, or with "none" in none, and reports whether there is such a
// mutant. No cache may be in use meanwhile.
func Mutate(name string) bool {
	for i, m := range mutants {
		if m.name == name {
			broken = mutant(i)
			return true
		}
	}
	return false
}
