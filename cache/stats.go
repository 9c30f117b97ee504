package cache

import "maps"

// ioStats are counters of one lane for one backing device. Bytes are as the client sees them.
type ioStats struct {
	Reads, ReadBytes         counter
	Writes, WriteBytes       counter
	Flushes, Discards        counter
	HitBlocks, MissBlocks    counter // of reads
	BypassBytes              counter // not admitted: sequential, mode or a full cache
	FillBlocks               counter
	CachedWriteBlocks        counter // writes that went to the SSD
	WritebackBlocks          counter
	SettledBatches           counter // of ordered devices
	HealedBlocks             counter // clean blocks that the SSD returned wrongly
	BadBlocks                counter // dirty blocks that it returned wrongly
	SSDErrors, BackingErrors counter
	Held                     counter // operations that waited for an absent backing device
}

// laneStats are counters of one lane.
type laneStats struct {
	SSDReadBytes, SSDWriteBytes         counter
	BackingReadBytes, BackingWriteBytes counter
	MetadataBytes                       counter // of the SSD writes
	JournalFlushes, JournalErrors       counter
	EvictedBuckets, EvictedBlocks       counter
	MovedBlocks                         counter // pinned ones, out of the way of eviction
	PinsGivenUp                         counter
	Checkpoints                         counter
	Abandoned                           counter // operations on the SSD that took too long
}

func (l *Lane) count(c *counter, n int64) { c.Add(n) }

// BackingStats are the counters of a backing device since the cache was started.
type BackingStats struct {
	Reads             int64 `json:"reads"`
	ReadBytes         int64 `json:"read_bytes"`
	Writes            int64 `json:"writes"`
	WriteBytes        int64 `json:"write_bytes"`
	Flushes           int64 `json:"flushes"`
	Discards          int64 `json:"discards"`
	HitBlocks         int64 `json:"hit_blocks"`
	MissBlocks        int64 `json:"miss_blocks"`
	BypassBytes       int64 `json:"bypass_bytes"`
	FillBlocks        int64 `json:"fill_blocks"`
	CachedWriteBlocks int64 `json:"cached_write_blocks"`
	WritebackBlocks   int64 `json:"writeback_blocks"`
	SettledBatches    int64 `json:"settled_batches"`
	HealedBlocks      int64 `json:"healed_blocks"`
	BadBlocks         int64 `json:"bad_blocks"`
	SSDErrors         int64 `json:"ssd_errors"`
	BackingErrors     int64 `json:"backing_errors"`
	HeldOps           int64 `json:"held_operations"`
}

// HitRatio is the share of blocks read that came from the SSD, from 0 to 1.
func (s BackingStats) HitRatio() float64 {
	if s.HitBlocks+s.MissBlocks == 0 {
		return 0
	}
	return float64(s.HitBlocks) / float64(s.HitBlocks+s.MissBlocks)
}

func (s *BackingStats) add(o *ioStats) {
	s.Reads += o.Reads.Load()
	s.ReadBytes += o.ReadBytes.Load()
	s.Writes += o.Writes.Load()
	s.WriteBytes += o.WriteBytes.Load()
	s.Flushes += o.Flushes.Load()
	s.Discards += o.Discards.Load()
	s.HitBlocks += o.HitBlocks.Load()
	s.MissBlocks += o.MissBlocks.Load()
	s.BypassBytes += o.BypassBytes.Load()
	s.FillBlocks += o.FillBlocks.Load()
	s.CachedWriteBlocks += o.CachedWriteBlocks.Load()
	s.WritebackBlocks += o.WritebackBlocks.Load()
	s.SettledBatches += o.SettledBatches.Load()
	s.HealedBlocks += o.HealedBlocks.Load()
	s.BadBlocks += o.BadBlocks.Load()
	s.SSDErrors += o.SSDErrors.Load()
	s.BackingErrors += o.BackingErrors.Load()
	s.HeldOps += o.Held.Load()
}

// Stats are the counters of a cache since it was started.
type Stats struct {
	SSDReadBytes      int64 `json:"ssd_read_bytes"`
	SSDWriteBytes     int64 `json:"ssd_write_bytes"`
	BackingReadBytes  int64 `json:"backing_read_bytes"`
	BackingWriteBytes int64 `json:"backing_write_bytes"`
	MetadataBytes     int64 `json:"metadata_bytes"`
	JournalFlushes    int64 `json:"journal_flushes"`
	JournalErrors     int64 `json:"journal_errors"`
	EvictedBuckets    int64 `json:"evicted_buckets"`
	EvictedBlocks     int64 `json:"evicted_blocks"`
	MovedBlocks       int64 `json:"moved_blocks"`
	PinsGivenUp       int64 `json:"pins_given_up"` // since the SSD has failed nearly all buckets
	Checkpoints       int64 `json:"checkpoints"`
	// How often the SSD became slow, was lost, and came back in place.
	SSDSlows   int64 `json:"ssd_slows"`
	SSDLosses  int64 `json:"ssd_losses"`
	SSDReturns int64 `json:"ssd_returns"`
	// Abandoned are operations on the SSD that requests did not wait for any more.
	Abandoned int64 `json:"ssd_abandoned"`

	Backings   map[BackingID]BackingStats `json:"backings"`
	Attributes AttributesStats            `json:"attributes"`
}

// Stats adds up the counters of all lanes.
func (c *Cache) Stats() Stats {
	c.roll.Lock()
	defer c.roll.Unlock()
	s := c.past
	s.Backings = maps.Clone(c.past.Backings)
	s.Attributes = c.past.Attributes.clone()
	for _, l := range *c.lanes.Load() {
		s.addLane(l, *c.backings.Load())
	}
	s.Attributes.finish()
	h := &c.ssdHealth
	s.SSDSlows, s.SSDLosses, s.SSDReturns = h.slows.Load(), h.losses.Load(), h.returns.Load()
	return s
}

func (s *Stats) addLane(l *Lane, backings [MaxBackings + 1]*Backing) {
	o := &l.stats
	s.SSDReadBytes += o.SSDReadBytes.Load()
	s.SSDWriteBytes += o.SSDWriteBytes.Load()
	s.BackingReadBytes += o.BackingReadBytes.Load()
	s.BackingWriteBytes += o.BackingWriteBytes.Load()
	s.MetadataBytes += o.MetadataBytes.Load()
	s.JournalFlushes += o.JournalFlushes.Load()
	s.JournalErrors += o.JournalErrors.Load()
	s.EvictedBuckets += o.EvictedBuckets.Load()
	s.EvictedBlocks += o.EvictedBlocks.Load()
	s.MovedBlocks += o.MovedBlocks.Load()
	s.PinsGivenUp += o.PinsGivenUp.Load()
	s.Checkpoints += o.Checkpoints.Load()
	s.Abandoned += o.Abandoned.Load()
	s.Attributes.addCounters(&l.attrs)
	if s.Backings == nil {
		s.Backings = map[BackingID]BackingStats{}
	}
	for _, b := range backings {
		if b != nil {
			t := s.Backings[b.id]
			t.add(&l.io[b.id])
			s.Backings[b.id] = t
		}
	}
}
