package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	superMagic      = "UBCACHE\x01"
	formatVersion   = 2 // the newest that is known
	pageVersion     = 1 // of journal and summary pages
	backingRecBytes = 512

	orderedVersion = 2 // in which devices may be ordered

	flagClean     = 1 << 0 // stopped in order: no pending records, all summaries written
	flagChecksums = 1 << 1 // data checksums are kept and verified
)

// UUID identifies a cache or a backing device.
type UUID [16]byte

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// ParseUUID reads the form that String writes.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	h := strings.ReplaceAll(s, "-", "")
	if n, err := fmt.Sscanf(h, "%32x", new([]byte)); n != 1 || err != nil || len(h) != 32 {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	var b []byte
	if _, err := fmt.Sscanf(h, "%x", &b); err != nil || len(b) != 16 {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	copy(u[:], b)
	return u, nil
}

// Identity is what is recorded of a backing device to recognise it and to notice a swap.
type Identity struct {
	Size   int64  // bytes, of the whole device
	Serial string // serial number or WWID, empty if it has none
	FSType string // filesystem or partition table found at adoption, if any
	FSUUID string
}

// BackingRecord is a backing device as the superblock has it.
type BackingRecord struct {
	ID        BackingID
	Detaching bool
	Mode      Mode
	LBS       int32 // logical block size in bytes
	UUID      UUID
	Size      int64 // bytes that the cached device has
	DataOff   int64 // where they begin on the backing device; 0 if it was adopted in place
	Name      string
	Identity  Identity
	Tunables  Tunables
	// OrderedFrom is the record at which the device became ordered; queues have none before it.
	OrderedFrom LSN
	// Dirty is how many blocks were dirty on record: at the stop, of a cache that was stopped in
	// order, else after the start. 0 is not known, 1 none, n+1 n blocks.
	Dirty uint64
	// Print is what the backing device itself had when the cache was stopped in order. It is
	// compared only after such a stop.
	Print Fingerprint
	// Head is the epoch that the backing header has, where there is one: that of the last start with
	// the device; 0: not known.
	Head uint64
	// LostWrites says that the backing device has lost writes that were acknowledged and not flushed, and that
	// no FLUSH has said so yet: the next one does.
	LostWrites bool
}

// Fingerprint is a hash over places of a backing device that change when it is used without the
// cache. Which places and how is the caller's.
type Fingerprint struct {
	Kind uint32 // 0: there is none
	Sum  uint64
	Time time.Time
}

// Superblock describes a cache; two copies alternate on the SSD.
type Superblock struct {
	Version   uint32 // of the format: 2 once a device was ordered, else 1
	UUID      UUID
	Seq       uint64
	Label     string
	Clean     bool
	Checksums bool
	Epoch     uint64 // counts starts
	Created   time.Time
	NextID    BackingID
	Geometry  Geometry
	Backings  []BackingRecord
	// LSN is of the next record after those that the journal had when this was written.
	LSN LSN

	stop    *stopRecord // of the last stop, if that was in order and nothing was written since
	doubt   doubtRange
	damaged []string // what is wrong with the other copy, if it is not whole
}

// Field places in the superblock page, in bytes.
const (
	supVersion  = 8
	supSeq      = 16
	supLocation = 24
	supSum      = 32
	supUUID     = 40
	supFlags    = 56
	supNextID   = 60
	supEpoch    = 64
	supCreated  = 72
	supDevice   = 80
	supBucket   = 88
	supBuckets  = 96
	supJournal  = 100
	supSummary  = 104
	supData     = 120
	supLabel    = 128
	supLabelLen = 64
	supLSN      = 192
)

func (sb *Superblock) encode(off int64) []byte {
	p := make([]byte, superBytes)
	le := binary.LittleEndian
	copy(p, superMagic)
	sb.Version = max(sb.Version, 1)
	for i := range sb.Backings {
		if sb.Backings[i].Tunables.Ordered {
			// What does not know of it would write back in any order.
			sb.Version = max(sb.Version, orderedVersion)
		}
	}
	le.PutUint32(p[supVersion:], sb.Version)
	le.PutUint64(p[supSeq:], sb.Seq)
	le.PutUint64(p[supLocation:], uint64(off))
	copy(p[supUUID:], sb.UUID[:])
	var flags uint32
	if sb.Clean {
		flags |= flagClean
	}
	if sb.Checksums {
		flags |= flagChecksums
	}
	le.PutUint32(p[supFlags:], flags)
	le.PutUint16(p[supNextID:], uint16(sb.NextID))
	le.PutUint64(p[supEpoch:], sb.Epoch)
	le.PutUint64(p[supCreated:], uint64(sb.Created.UnixNano()))
	g := &sb.Geometry
	le.PutUint64(p[supDevice:], uint64(g.DeviceBytes))
	le.PutUint64(p[supBucket:], uint64(g.BucketBytes))
	le.PutUint32(p[supBuckets:], g.Buckets)
	le.PutUint32(p[supJournal:], g.JournalPages)
	le.PutUint64(p[supSummary:], uint64(g.SummaryOff[0]))
	le.PutUint64(p[supSummary+8:], uint64(g.SummaryOff[1]))
	le.PutUint64(p[supData:], uint64(g.DataOff))
	le.PutUint64(p[supLSN:], uint64(sb.LSN))
	putString(p[supLabel:supLabel+supLabelLen], sb.Label)
	if sb.Clean && sb.stop != nil {
		sb.stop.encode(p, g)
	}
	if !sb.Clean {
		sb.doubt.encode(p)
	}
	for i := range sb.Backings {
		sb.Backings[i].encode(p[pageSize+i*backingRecBytes:][:backingRecBytes])
	}
	le.PutUint64(p[supSum:], metaSum(p, off)) // the field itself is still zero
	return p
}

// perhapsNewer is of a copy with a newer version that fails its checksum: the version is damaged, or the newer format
// has another checksum. The other copy decides.
type perhapsNewer struct{ error }

func (e perhapsNewer) Unwrap() error { return e.error }

// decodeSuper checks and reads the superblock copy that was found at off.
func decodeSuper(p []byte, off int64) (*Superblock, error) {
	le := binary.LittleEndian
	if len(p) < superBytes || string(p[:8]) != superMagic {
		return nil, ErrNotCache
	}
	body := append([]byte(nil), p[:superBytes]...)
	sum := le.Uint64(body[supSum:])
	le.PutUint64(body[supSum:], 0)
	whole := metaSum(body, off) == sum && le.Uint64(p[supLocation:]) == uint64(off)
	if v := le.Uint32(p[supVersion:]); v > formatVersion {
		err := fmt.Errorf("%w: format version %d, this one knows %d (use the newer ubcache)",
			ErrNewer, v, formatVersion)
		if !whole {
			err = perhapsNewer{err}
		}
		return nil, err
	}
	if !whole {
		return nil, fmt.Errorf("%w: superblock at %d fails its checksum", ErrCorrupt, off)
	}
	sb := &Superblock{
		Version: le.Uint32(p[supVersion:]),
		Seq:     le.Uint64(p[supSeq:]), Epoch: le.Uint64(p[supEpoch:]),
		NextID:  BackingID(le.Uint16(p[supNextID:])),
		Created: time.Unix(0, int64(le.Uint64(p[supCreated:]))).UTC(),
		Label:   getString(p[supLabel : supLabel+supLabelLen]),
		LSN:     LSN(le.Uint64(p[supLSN:])),
	}
	copy(sb.UUID[:], p[supUUID:])
	flags := le.Uint32(p[supFlags:])
	sb.Clean, sb.Checksums = flags&flagClean != 0, flags&flagChecksums != 0
	sb.Geometry = Geometry{
		DeviceBytes: int64(le.Uint64(p[supDevice:])), BucketBytes: int64(le.Uint64(p[supBucket:])),
		Buckets: le.Uint32(p[supBuckets:]), JournalPages: le.Uint32(p[supJournal:]),
		SummaryOff: [2]int64{
			int64(le.Uint64(p[supSummary:])), int64(le.Uint64(p[supSummary+8:])),
		},
		DataOff: int64(le.Uint64(p[supData:])),
	}
	if sb.Clean && sb.Geometry.Buckets > 0 {
		sb.stop = decodeStop(p, &sb.Geometry)
	}
	if !sb.Clean {
		sb.doubt = decodeDoubt(p)
	}
	for i := range MaxBackings {
		if r, ok := decodeBacking(p[pageSize+i*backingRecBytes:][:backingRecBytes]); ok {
			sb.Backings = append(sb.Backings, r)
		}
	}
	return sb, nil
}

// Field places in a backing device's record.
const (
	bakState   = 0 // 0 none, 1 attached, 2 detaching
	bakMode    = 1
	bakID      = 2
	bakLBS     = 4
	bakUUID    = 8
	bakSize    = 24
	bakDataOff = 32
	bakCutoff  = 40
	bakTarget  = 48
	bakMax     = 49
	bakPins    = 50 // quota and 1; 0 is the default
	bakDelay   = 56
	bakIDSize  = 64
	bakOrdAge  = 72 // 0 is the default
	bakOrdMax  = 80 // 0 is the default
	bakOrdFrom = 88
	bakHold    = 96 // see encodeHold
	bakOrdered = 100
	bakLost    = 101
	bakName    = 128
	bakSerial  = 192
	bakFSType  = 320
	bakFSUUID  = 352
	bakEnd     = 416
	bakPrint   = 416
	bakSum     = 424
	bakTime    = 432
	bakDirty   = 440
	bakHead    = 448
	bakLoss    = 456 // kind of the loss policy, and its hold in ms and 1; 0 is the default
	bakWait    = 460
)

func (r *BackingRecord) encode(p []byte) {
	le := binary.LittleEndian
	p[bakState], p[bakMode] = 1, byte(r.Mode)
	if r.Detaching {
		p[bakState] = 2
	}
	le.PutUint16(p[bakID:], uint16(r.ID))
	le.PutUint32(p[bakLBS:], uint32(r.LBS))
	copy(p[bakUUID:], r.UUID[:])
	le.PutUint64(p[bakSize:], uint64(r.Size))
	le.PutUint64(p[bakDataOff:], uint64(r.DataOff))
	le.PutUint64(p[bakCutoff:], uint64(r.Tunables.SequentialCutoff))
	p[bakTarget], p[bakMax] = byte(r.Tunables.DirtyTarget), byte(r.Tunables.DirtyMax)
	p[bakPins] = byte(r.Tunables.PinQuota + 1)
	le.PutUint64(p[bakDelay:], uint64(r.Tunables.WritebackDelay))
	le.PutUint64(p[bakIDSize:], uint64(r.Identity.Size))
	le.PutUint64(p[bakOrdAge:], uint64(r.Tunables.OrderedAge))
	le.PutUint64(p[bakOrdMax:], uint64(r.Tunables.OrderedMax))
	le.PutUint64(p[bakOrdFrom:], uint64(r.OrderedFrom))
	if r.Tunables.Ordered {
		p[bakOrdered] = 1
	}
	if r.LostWrites {
		p[bakLost] = 1
	}
	le.PutUint32(p[bakHold:], encodeHold(r.Tunables.BackingHold))
	p[bakLoss] = byte(r.Tunables.Loss.Kind)
	le.PutUint32(p[bakWait:], uint32(r.Tunables.Loss.Hold/time.Millisecond)+1)
	putString(p[bakName:bakSerial], r.Name)
	putString(p[bakSerial:bakFSType], r.Identity.Serial)
	putString(p[bakFSType:bakFSUUID], r.Identity.FSType)
	putString(p[bakFSUUID:bakEnd], r.Identity.FSUUID)
	le.PutUint64(p[bakDirty:], r.Dirty)
	le.PutUint64(p[bakHead:], r.Head)
	if f := &r.Print; f.Kind != 0 {
		le.PutUint32(p[bakPrint:], f.Kind)
		le.PutUint64(p[bakSum:], f.Sum)
		le.PutUint64(p[bakTime:], uint64(f.Time.UnixNano()))
	}
}

func decodeBacking(p []byte) (r BackingRecord, ok bool) {
	le := binary.LittleEndian
	if p[bakState] == 0 {
		return r, false
	}
	r = BackingRecord{
		ID: BackingID(le.Uint16(p[bakID:])), Detaching: p[bakState] == 2, Mode: Mode(p[bakMode]),
		LBS: int32(le.Uint32(p[bakLBS:])), Size: int64(le.Uint64(p[bakSize:])),
		DataOff: int64(le.Uint64(p[bakDataOff:])), Name: getString(p[bakName:bakSerial]),
		Identity: Identity{
			Size:   int64(le.Uint64(p[bakIDSize:])),
			Serial: getString(p[bakSerial:bakFSType]),
			FSType: getString(p[bakFSType:bakFSUUID]), FSUUID: getString(p[bakFSUUID:bakEnd]),
		},
		Tunables: Tunables{
			SequentialCutoff: int64(le.Uint64(p[bakCutoff:])),
			DirtyTarget:      int(p[bakTarget]), DirtyMax: int(p[bakMax]),
			WritebackDelay: time.Duration(le.Uint64(p[bakDelay:])), PinQuota: int(p[bakPins]) - 1,
			Ordered:     p[bakOrdered] != 0,
			OrderedAge:  time.Duration(le.Uint64(p[bakOrdAge:])),
			OrderedMax:  int64(le.Uint64(p[bakOrdMax:])),
			BackingHold: decodeHold(le.Uint32(p[bakHold:])),
		},
		OrderedFrom: LSN(le.Uint64(p[bakOrdFrom:])),
		LostWrites:  p[bakLost] != 0,
	}
	if r.Tunables.OrderedAge == 0 {
		r.Tunables.OrderedAge = defaultOrderedAge
	}
	if r.Tunables.OrderedMax == 0 {
		r.Tunables.OrderedMax = defaultOrderedMax
	}
	r.Tunables.Loss = LossPolicy{Kind: LossKind(p[bakLoss]), Hold: DefaultLossHold}
	if int(r.Tunables.Loss.Kind) >= len(lossNames) {
		r.Tunables.Loss.Kind = LossStop
	}
	if ms := le.Uint32(p[bakWait:]); ms != 0 {
		r.Tunables.Loss.Hold = time.Duration(ms-1) * time.Millisecond
	}
	if r.Tunables.PinQuota < 0 {
		r.Tunables.PinQuota = defaultPinQuota
	}
	copy(r.UUID[:], p[bakUUID:])
	r.Dirty, r.Head = le.Uint64(p[bakDirty:]), le.Uint64(p[bakHead:])
	if kind := le.Uint32(p[bakPrint:]); kind != 0 {
		r.Print = Fingerprint{
			Kind: kind, Sum: le.Uint64(p[bakSum:]),
			Time: time.Unix(0, int64(le.Uint64(p[bakTime:]))).UTC(),
		}
	}
	return r, true
}

func putString(p []byte, s string) { copy(p, s[:min(len(s), len(p))]) }

func getString(p []byte) string {
	s, _, _ := strings.Cut(string(p), "\x00")
	return s
}

// superCopy is one copy of the superblock: sb, or what is wrong with it.
type superCopy struct {
	off int64
	sb  *Superblock
	err error
}

// readSupers reads both copies.
func readSupers(dev Storage) (all [2]superCopy) {
	p := alignedBytes(superBytes)
	for i, off := range []int64{superOffA, superOffB} {
		all[i].off = off
		if _, all[i].err = dev.ReadAt(p, off); all[i].err == nil {
			all[i].sb, all[i].err = decodeSuper(p, off)
		}
	}
	return all
}

// ReadSuper reads the newer valid superblock of a cache device.
func ReadSuper(dev Storage) (*Superblock, error) {
	var best *Superblock
	var firstErr, newer error
	var damaged []string
	for _, k := range readSupers(dev) {
		if errors.Is(k.err, ErrNewer) {
			if _, perhaps := k.err.(perhapsNewer); !perhaps {
				return nil, k.err
			}
			newer = k.err
		}
		if k.err != nil {
			damaged = append(damaged, fmt.Sprintf("superblock at %d: %v", k.off, k.err))
			if firstErr == nil || errors.Is(firstErr, ErrNotCache) {
				firstErr = k.err
			}
		}
		if k.sb != nil && (best == nil || k.sb.Seq > best.Seq) {
			best = k.sb
		}
	}
	if best == nil && newer != nil {
		return nil, newer
	}
	if best == nil {
		return nil, fmt.Errorf("read superblock: %w", firstErr)
	}
	if err := best.Geometry.check(dev.Size()); err != nil {
		return nil, err
	}
	// The copy that is lost may have been the newer one, which said that the cache runs.
	if best.damaged = damaged; damaged != nil {
		best.Clean, best.stop = false, nil
	}
	return best, nil
}

// Damaged reports whether the other copy is not whole: it may have been the newer one.
func (sb *Superblock) Damaged() bool { return sb.damaged != nil }

// writeSuper writes the next superblock over the older copy, makes it durable, and brings the other
// copy in line, so that the loss of either loses nothing.
func writeSuper(dev Storage, sb *Superblock) error {
	sb.Seq++
	places := [2]int64{superOffA, superOffB}
	if sb.Seq%2 == 0 {
		places = [2]int64{superOffB, superOffA}
	}
	p := alignedBytes(superBytes)
	for i, off := range places {
		if i == 1 && mutated(mutOneSuper) {
			break
		}
		copy(p, sb.encode(off))
		_, err := dev.WriteAt(p, off)
		if err == nil {
			err = dev.Sync()
		}
		if err != nil && i == 0 { // with the first copy it is done
			return fmt.Errorf("write superblock: %w", err)
		}
	}
	return nil
}
