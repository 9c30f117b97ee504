package cache

import (
	"errors"
	"fmt"
	"time"
)

const (
	// SectorSize is the unit of addresses at the block layer, in bytes.
	SectorSize = 512
	// BlockSize is the unit of caching, in bytes.
	BlockSize = 4096

	sectorsPerBlock = BlockSize / SectorSize
	fullMask        = 1<<sectorsPerBlock - 1

	// regionBlocks is how many blocks share a stripe: requests are cut at regions, so that one
	// piece needs one stripe.
	regionBlocks = 256
	regionShift  = 8
	regionBytes  = regionBlocks * BlockSize
)

// Block numbers the BlockSize pieces of one backing device.
type Block uint64

// Slot numbers the BlockSize places for data on the SSD, from the start of the data area.
type Slot uint32

// BucketID numbers the buckets of the SSD, from the start of the data area.
type BucketID uint32

// LSN is the log sequence number of a journal record; the first record of a cache is 1.
type LSN uint64

// BackingID is the number of a backing device in its cache, from 1; it is not reused while any
// record of the old device may be alive.
type BackingID uint16

const (
	// MaxBackings is the largest number of backing devices of one cache.
	MaxBackings = 64
	maxBlock    = 1<<36 - 1
	maxSlots    = 1<<32 - 2
	noSlot      = Slot(1<<32 - 1)
	noLSN       = LSN(1<<64 - 1)
)

// Mode says where the writes of a backing device go and whether its reads fill the cache.
type Mode uint8

// The modes; they are stored on the SSD, so the numbers stay.
const (
	Writethrough Mode = iota
	Writeback
	Writearound
	Writeonly
	None
)

var modeNames = [...]string{"writethrough", "writeback", "writearound", "writeonly", "none"}

// modeRow is what a mode means to the data path.
type modeRow struct {
	fill    bool // read misses enter the cache
	back    bool // writes are acknowledged from the SSD
	through bool // writes go to both
}

var modeTable = [...]modeRow{
	Writethrough: {fill: true, through: true},
	Writeback:    {fill: true, back: true},
	Writearound:  {fill: true},
	Writeonly:    {back: true},
	None:         {},
}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode returns the mode of that name.
func ParseMode(s string) (Mode, error) {
	for i, n := range modeNames {
		if n == s {
			return Mode(i), nil
		}
	}
	return 0, fmt.Errorf("unknown mode %q (one of writeback, writethrough, writearound, writeonly, none)", s)
}

// Errors that a caller can act on.
var (
	ErrNotCache    = errors.New("not an ubcache cache device")
	ErrNewer       = errors.New("written by a newer ubcache")
	ErrCorrupt     = errors.New("metadata is damaged")
	ErrIdentity    = errors.New("the device is not the one recorded")
	ErrNoBacking   = errors.New("no such backing device in this cache")
	ErrExists      = errors.New("already attached")
	ErrTooMany     = errors.New("too many backing devices")
	ErrTooSmall    = errors.New("device too small")
	ErrBusy        = errors.New("busy")
	ErrNotFinished = errors.New("dirty data remains")
	ErrDirtyBad    = errors.New("dirty data on the SSD cannot be read")
	// ErrGivenUp: a forced detach has failed when the dirty blocks were out of the index: the device must not be served any more.
	ErrGivenUp = errors.New("its dirty data is given up")
	// ErrDirtyDamage: metadata is lost, and with it perhaps dirty data; Salvage can save the rest.
	ErrDirtyDamage = fmt.Errorf("%w, dirty data may be lost", ErrCorrupt)
)

// DeviceError is a failed I/O of a device, with what was being done.
type DeviceError struct {
	Op     OpKind
	Device string // "ssd" or the backing device's name
	Off    int64  // bytes
	Len    int64  // bytes
	Err    error
}

func (e *DeviceError) Error() string {
	return fmt.Sprintf("%s %s at %d+%d: %v", e.Op, e.Device, e.Off, e.Len, e.Err)
}

func (e *DeviceError) Unwrap() error { return e.Err }

// Tunables of one backing device, settable live.
type Tunables struct {
	// SequentialCutoff is the length in bytes after which a stream of contiguous requests
	// bypasses the cache; 0 never bypasses.
	SequentialCutoff int64
	// DirtyTarget is the share of the cache, in percent, that writeback lets stay dirty.
	DirtyTarget int
	// DirtyMax is the share of the cache, in percent, at which writes go to the backing
	// device instead of making more dirty data.
	DirtyMax int
	// WritebackDelay is the age that dirty data may reach on an idle device before it is
	// written back; the dirty target is held at any age.
	WritebackDelay time.Duration
	// PinQuota is the share of the cache, in percent, that pinned blocks of this device may take.
	// All devices together have half of the cache.
	PinQuota int
	// Loss says what becomes of requests if the SSD is lost with dirty data of this device.
	Loss LossPolicy
	// Ordered makes the backing device a consistent older image at all times: what is written
	// back goes there in the order in which it was acknowledged, as far as flushes tell.
	Ordered bool
	// OrderedAge is how old acknowledged data of an ordered device may be that the backing device
	// does not have, and OrderedMax how much of it there may be, in bytes: losing the SSD loses no
	// more. Writes wait where writeback cannot keep up.
	OrderedAge time.Duration
	OrderedMax int64
	// BackingHold is how long requests wait for the backing device when it is gone, from then on,
	// before they fail: whole seconds, 0 for not at all, or HoldForever.
	BackingHold time.Duration
}

const (
	defaultPinQuota = 25
	maxPinQuota     = 50
)

// DefaultTunables are those of a newly attached device.
func DefaultTunables() Tunables {
	return Tunables{
		SequentialCutoff: 4 << 20, DirtyTarget: 10, DirtyMax: 70,
		WritebackDelay: 30 * time.Second, PinQuota: defaultPinQuota, BackingHold: defaultBackingHold,
		Loss:       LossPolicy{Hold: DefaultLossHold},
		OrderedAge: defaultOrderedAge, OrderedMax: defaultOrderedMax,
	}
}

// Validate reports all faults at once.
func (t Tunables) Validate() error {
	var errs []error
	if t.SequentialCutoff < 0 {
		errs = append(errs, errors.New("sequential-cutoff must not be negative"))
	}
	if t.DirtyTarget < 0 || t.DirtyTarget > 100 {
		errs = append(errs, fmt.Errorf("dirty-target %d is not a percentage", t.DirtyTarget))
	}
	if t.DirtyMax < 1 || t.DirtyMax > 95 {
		errs = append(errs, fmt.Errorf("dirty-max %d is not within 1 and 95 percent", t.DirtyMax))
	}
	if t.DirtyTarget > t.DirtyMax {
		errs = append(errs, errors.New("dirty-target is above dirty-max"))
	}
	if t.WritebackDelay < 0 || t.WritebackDelay > 24*time.Hour {
		errs = append(errs, errors.New("writeback-delay must be between 0 and 24h"))
	}
	if t.PinQuota < 0 || t.PinQuota > maxPinQuota {
		errs = append(errs, fmt.Errorf("pin-quota %d is not within 0 and %d percent", t.PinQuota, maxPinQuota))
	}
	if int(t.Loss.Kind) >= len(lossNames) {
		errs = append(errs, fmt.Errorf("ssd-loss %d is no policy", t.Loss.Kind))
	}
	if t.Loss.Hold < 0 || t.Loss.Hold > maxLossHold || t.Loss.Hold%time.Millisecond != 0 {
		errs = append(errs, fmt.Errorf("ssd-loss-hold must be between 0 and %s, in whole milliseconds", maxLossHold))
	}
	if t.OrderedAge < minOrderedAge || t.OrderedAge > maxOrderedAge {
		errs = append(errs, fmt.Errorf("ordered-age %v is not between 1s and 24h", t.OrderedAge))
	}
	if t.OrderedMax < minOrderedMax || t.OrderedMax > maxOrderedMax {
		errs = append(errs, fmt.Errorf("ordered-max of %d bytes is not between 1M and 1T", t.OrderedMax))
	}
	if err := checkHold(t.BackingHold); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
