package cache

import "fmt"

// Places and sizes on the SSD, in bytes; FORMAT.md has the picture.
const (
	pageSize      = 4096
	superOffA     = 64 << 10
	superOffB     = 128 << 10
	superBytes    = pageSize + MaxBackings*backingRecBytes
	journalOff    = 1 << 20
	summaryHeader = 64
	summaryEntry  = 12
	// summarySlots is how many slots one summary page describes.
	summarySlots = 256

	minBucketBytes     = 64 << 10
	maxBucketBytes     = 64 << 20
	minBuckets         = 32
	minJournalPages    = 64
	maxJournalPages    = 32 << 10
	defaultBucketBytes = 1 << 20
)

// Geometry is where things are on the SSD. It is fixed when the cache is formatted.
type Geometry struct {
	DeviceBytes  int64
	BucketBytes  int64
	Buckets      uint32
	JournalPages uint32
	SummaryOff   [2]int64
	DataOff      int64
}

// planGeometry divides a device of that size.
func planGeometry(deviceBytes, bucketBytes int64) (Geometry, error) {
	g := Geometry{DeviceBytes: deviceBytes, BucketBytes: bucketBytes}
	if bucketBytes < minBucketBytes || bucketBytes > maxBucketBytes ||
		bucketBytes&(bucketBytes-1) != 0 {
		return g, fmt.Errorf("bucket size %d is not a power of two from 64 KiB to 64 MiB", bucketBytes)
	}
	pages := clamp(deviceBytes/512/pageSize, minJournalPages,
		max(maxJournalPages, deviceBytes/bucketBytes/16))
	g.JournalPages = uint32(pages)
	left := deviceBytes - journalOff - pages*pageSize - 2*bucketBytes
	perBucket := bucketBytes + 2*g.summaryPages()*pageSize
	n := left / perBucket
	if limit := int64(maxSlots) / g.slotsPerBucket(); n > limit {
		n = limit
	}
	if n < minBuckets {
		need := journalOff + minJournalPages*pageSize + 2*bucketBytes + minBuckets*perBucket
		return g, fmt.Errorf("%w: %d bytes, at least %d needed with %d-byte buckets",
			ErrTooSmall, deviceBytes, need, bucketBytes)
	}
	g.Buckets = uint32(n)
	zone := n * g.summaryPages() * pageSize
	g.SummaryOff[0] = journalOff + pages*pageSize
	g.SummaryOff[1] = g.SummaryOff[0] + zone
	g.DataOff = roundUp(g.SummaryOff[1]+zone, bucketBytes)
	return g, nil
}

// check reports whether the geometry read from a superblock can be that of the device.
func (g *Geometry) check(deviceBytes int64) error {
	want, err := planGeometry(g.DeviceBytes, g.BucketBytes)
	if err != nil {
		return err
	}
	if want != *g {
		return fmt.Errorf("%w: geometry in the superblock contradicts itself", ErrCorrupt)
	}
	if deviceBytes < g.DataOff+int64(g.Buckets)*g.BucketBytes {
		return fmt.Errorf("%w: device has %d bytes, the cache was made on %d",
			ErrTooSmall, deviceBytes, g.DeviceBytes)
	}
	return nil
}

func (g *Geometry) slotsPerBucket() int64 { return g.BucketBytes / BlockSize }
func (g *Geometry) summaryPages() int64   { return max(1, g.slotsPerBucket()/summarySlots) }

// pageOf is the summary page that describes a slot, counted over all buckets.
func (g *Geometry) pageOf(s Slot) int64 {
	per := g.slotsPerBucket()
	return int64(s)/per*g.summaryPages() + int64(s)%per/summarySlots
}

// pageSlots is the slots that a summary page describes.
func (g *Geometry) pageSlots(page int64) (first Slot, n int) {
	per, pages := g.slotsPerBucket(), g.summaryPages()
	return Slot(page/pages*per + page%pages*summarySlots), int(min(summarySlots, per))
}

func (g *Geometry) slots() int64 { return int64(g.Buckets) * g.slotsPerBucket() }

// slotOff is the place of a slot's data on the SSD.
func (g *Geometry) slotOff(s Slot) int64 { return g.DataOff + int64(s)*BlockSize }

func (g *Geometry) journalPageOff(seq uint64) int64 {
	return journalOff + int64(seq%uint64(g.JournalPages))*pageSize
}

func (g *Geometry) summaryOff(copy int, b BucketID) int64 {
	return g.SummaryOff[copy] + int64(b)*g.summaryPages()*pageSize
}

func clamp(v, lo, hi int64) int64 { return max(lo, min(v, hi)) }

func roundUp(v, to int64) int64 { return (v + to - 1) / to * to }
