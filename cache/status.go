package cache

import (
	"time"
	"unsafe"
)

// BackingStatus is the present state of a backing device.
type BackingStatus struct {
	ID            BackingID `json:"id"`
	Name          string    `json:"name"`
	UUID          string    `json:"uuid"`
	Mode          string    `json:"mode"`
	State         string    `json:"state"`    // clean, dirty, detaching
	Presence      string    `json:"presence"` // present, or absent and: holding, failing
	SizeBytes     int64     `json:"size_bytes"`
	CachedBytes   int64     `json:"cached_bytes"`
	DirtyBytes    int64     `json:"dirty_bytes"`
	PendingBytes  int64     `json:"pending_bytes"` // written back, waiting for a flush
	BadBytes      int64     `json:"bad_bytes"`     // dirty, and lost by the SSD
	PinnedBytes   int64     `json:"pinned_bytes"`
	PinQuota      int64     `json:"pin_quota_bytes"`
	DirtyTarget   int64     `json:"dirty_target_bytes"`
	DirtyMax      int64     `json:"dirty_max_bytes"`
	HasHeader     bool      `json:"has_header"`
	LBS           int       `json:"logical_block_bytes"`
	SequentialCut int64     `json:"sequential_cutoff_bytes"`
	// Missed: the lost SSD has missed changes of this device, so that its copies will not be used
	// again.
	Missed bool `json:"missed,omitempty"`
	// Ordered is off, on, or starting: ordered, but the backing device is no consistent image yet.
	Ordered string `json:"ordered"`
	// UnsettledBytes is what an ordered device would lose with the SSD now, and UnsettledMs how old
	// the oldest of it is.
	UnsettledBytes int64 `json:"unsettled_bytes"`
	UnsettledMs    int64 `json:"unsettled_ms"`
	// OrderedLimit is how much it may be now: ordered-max, or less if the backing device is slow.
	OrderedLimit int64 `json:"ordered_limit_bytes"`
	// OrderedLost counts blocks that the SSD could not return when it was their turn.
	OrderedLost int64 `json:"ordered_lost_blocks"`
	// OrderedBroken counts how often the order was given up and begun anew, because the backing
	// device failed while the others needed the journal.
	OrderedBroken int64 `json:"ordered_broken"`
}

// Status is the present state of a cache.
type Status struct {
	UUID         string          `json:"uuid"`
	Label        string          `json:"label"`
	Epoch        uint64          `json:"epoch"`
	Checksums    bool            `json:"checksums"`
	SizeBytes    int64           `json:"size_bytes"` // for data
	BucketBytes  int64           `json:"bucket_bytes"`
	Buckets      int             `json:"buckets"`
	FreeBuckets  int             `json:"free_buckets"`
	CachedBytes  int64           `json:"cached_bytes"`
	DirtyBytes   int64           `json:"dirty_bytes"`
	JournalPages int             `json:"journal_pages"`
	JournalUsed  int             `json:"journal_used_pages"`
	Pending      int             `json:"pending_records"`
	MemoryBytes  int64           `json:"memory_bytes"` // of index and metadata
	Loading      Loading         `json:"loading"`
	SSDState     string          `json:"ssd_state"` // ok, slow, lost
	SSDProblem   string          `json:"ssd_problem,omitempty"`
	SSDSince     time.Duration   `json:"ssd_since_ns,omitempty"` // how long it has been slow or lost
	Backings     []BackingStatus `json:"backings"`
}

// Status reports the present state.
func (c *Cache) Status() Status {
	sb := c.Super()
	pending, _ := c.journal.pendingRecords()
	s := Status{
		UUID: sb.UUID.String(), Label: sb.Label, Epoch: sb.Epoch, Checksums: sb.Checksums,
		SizeBytes: c.geo.slots() * BlockSize, BucketBytes: c.geo.BucketBytes,
		Buckets: int(c.geo.Buckets), FreeBuckets: int(c.alloc.freeCount.Load()),
		DirtyBytes: c.dirty.Load() * BlockSize, JournalPages: int(c.geo.JournalPages),
		JournalUsed: int(c.journal.usedPages()), Pending: int(pending), MemoryBytes: c.MemoryBytes(),
		SSDState: c.health().String(), Loading: c.Loading(),
	}
	if h := c.health(); h != HealthOK {
		s.SSDProblem = c.healthWhy()
		if l := c.bgLane.Load(); l != nil {
			s.SSDSince = time.Duration(l.d.Clock() - c.ssdHealth.since.Load())
		}
	}
	for i := range sb.Backings {
		r := &sb.Backings[i]
		b := c.backing(r.ID)
		if b == nil {
			continue
		}
		b.mu.Lock()
		waiting := int64(len(b.mu.pending))
		b.mu.Unlock()
		t := BackingStatus{
			ID: r.ID, Name: r.Name, UUID: r.UUID.String(), Mode: r.Mode.String(), State: "clean",
			Presence:  b.Presence().String(),
			SizeBytes: r.Size, CachedBytes: b.cached.Load() * BlockSize,
			DirtyBytes: b.dirty.Load() * BlockSize, PendingBytes: waiting * BlockSize,
			BadBytes:    b.bad.Load() * BlockSize,
			PinnedBytes: b.pinned.Load() * BlockSize, PinQuota: b.pinMax.Load() * BlockSize,
			DirtyTarget: b.dirtyTarget.Load() * BlockSize, DirtyMax: b.dirtyMax.Load() * BlockSize,
			HasHeader: r.DataOff != 0, LBS: int(r.LBS), SequentialCut: r.Tunables.SequentialCutoff,
		}
		c.orderStatus(b, &t)
		switch {
		case r.Detaching:
			t.State = "detaching"
		case t.DirtyBytes > 0:
			t.State = "dirty"
		}
		t.Missed = b.marker.Load() != markerNone
		s.CachedBytes += t.CachedBytes
		s.Backings = append(s.Backings, t)
	}
	return s
}

// MemoryBytes is what the index and the other metadata take, whether touched or not.
func (c *Cache) MemoryBytes() int64 {
	const bucketSize = int64(unsafe.Sizeof(bucket{}))
	queues := int64(0)
	for _, b := range c.backings.Load() {
		if b != nil {
			queues += b.order.bytes()
		}
	}
	return queues + int64(len(c.index.mem[0])+len(c.index.mem[1])+len(c.index.mem[2])) + int64(len(c.buckets))*bucketSize +
		int64(len(c.journal.firstLSN))*8 + int64(len(c.journal.mu.ring.mem)) +
		int64(len(c.index.stripes))*64
}
