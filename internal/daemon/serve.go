package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"ubcache/cache"
	"ubcache/internal/pi"
	"ubcache/internal/report"
	"ubcache/ublk"
)

const (
	// tagMagic is the top of the number by which the kernel lets us recognise our devices; the
	// rest comes from the UUID of the backing device.
	tagMagic = 0x5542 << 48

	defaultDepth = 128
	// Requests are cut at this size. The engine works in regions of 1 MiB.
	defaultMaxIO = 1 << 20
	// A discard locks 64 MiB at a time, so a longer one only takes longer. Where the engine has
	// to write zeroes itself, requests are kept short.
	maxDiscard  = 1 << 30
	maxZeroes   = 64 << 20
	oomScoreAdj = -1000
	// recoverTime bounds how long the I/O of a dead daemon is waited for.
	recoverTime = 30 * time.Second
)

func tagOf(id cache.UUID) uint64 {
	return tagMagic | binary.LittleEndian.Uint64(id[8:])&(1<<48-1)
}

// serveAll makes a block device for each backing device that is there.
func (in *Instance) serveAll(ctx context.Context) error {
	if in.opts.NoUblk {
		return nil
	}
	for _, s := range in.list() {
		if s.dev == nil {
			continue
		}
		if err := in.serve(ctx, s); err != nil {
			return report.Wrap("serve backing device "+s.name, err, "")
		}
	}
	return nil
}

// serve takes over the block device that an earlier daemon has left, or makes a new one.
func (in *Instance) serve(ctx context.Context, s *served) error {
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return err
	}
	tag := tagOf(r.UUID)
	old, err := findTag(tag)
	if err != nil {
		return err
	}
	o := in.ublkOptions(s, tag)
	var d *ublk.Device
	recovered := old != nil && old.State != ublk.StateDead && old.Features.Has(ublk.FeatureRecovery)
	switch {
	case recovered:
		in.log.Info("taking over", "device", old.Path(), "name", s.name, "state", old.State)
		d, err = in.takeOver(ctx, s, old, o)
	case old != nil:
		if err := ublk.DeleteID(ctx, old.ID); err != nil && !errors.Is(err, ublk.ErrNotFound) {
			return err
		}
		fallthrough
	default:
		d, err = ublk.Create(o)
	}
	if err != nil {
		return explainID(err, o.ID)
	}
	return in.startDevice(ctx, s, d, recovered)
}

func explainID(err error, id int) error {
	if errors.Is(err, os.ErrExist) {
		return report.Wrap("", err, fmt.Sprintf("another program has ublk device %d; choose "+
			"another ublk-id in the configuration", id))
	}
	return err
}

// takeOver recovers a device. It waits until the dead daemon's last I/O is over.
func (in *Instance) takeOver(ctx context.Context, s *served, old *ublk.Info, o ublk.Options) (
	*ublk.Device, error,
) {
	if old.Params.SizeBytes != uint64(s.b.Size()) {
		return nil, report.Refuse("take over "+old.Path(), fmt.Sprintf(
			"it has %d bytes and %s has %d", old.Params.SizeBytes, s.name, s.b.Size()),
			fmt.Sprintf("remove it with: ubcache stop --force, or ublk del -n %d", old.ID))
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	return ublk.Recover(ctx, old.ID, o)
}

// startDevice starts the queues of a device. A device that does not start is removed, unless it
// has I/O of an earlier daemon waiting.
func (in *Instance) startDevice(ctx context.Context, s *served, d *ublk.Device,
	recovered bool,
) error {
	queues := make([]*queue, d.Options().Queues)
	for i := range queues {
		queues[i] = &queue{
			ended: make(chan struct{}), c: in.cache, backing: s.b.ID(), shared: &s.shared.table,
			number: deviceNumber(d.ID()),
			attrs:  attributes{kernel: &s.kernel, rules: &s.rules.table},
			ssd:    driverDevice(in.ssd),
			disk:   driverDevice(s.dev),
			fail:   func(err error) { in.log.Error("request failed", "name", s.name, "error", err) },
			failed: func(r *cache.Request) { in.traced.failed(s.name, r) },
		}
	}
	s.b.SetNumber(deviceNumber(d.ID()))
	if d.Features().Has(ublk.FeatureSharedMemory) {
		r, err := in.recordOf(s.b.ID())
		if err != nil {
			return err
		}
		s.shared.begin(d, queueFolder(d.Path()), sharedPath(in.dir, r.UUID),
			in.log.With("name", s.name), recovered)
	}
	err := d.Start(func(i int) (ublk.Handler, error) { return queues[i], nil })
	if err != nil {
		if recovered {
			s.shared.handOver()
		} else {
			err = errors.Join(err, d.Delete(ctx))
			s.shared.end()
		}
		closeLanes(queues)
		return err
	}
	in.mu.Lock()
	s.ublk, s.queues, s.problem = d, queues, ""
	in.mu.Unlock()
	in.trackKernel(s)
	in.setScheduler(s)
	if s.link, err = makeLink(s.name, d.Path()); err != nil {
		in.log.Warn("no link to the device", "name", s.name, "error", err)
	}
	if target, err := deviceOf(d.Path()); err != nil {
		in.log.Warn("rules for files have no effect", "name", s.name, "error", err)
	} else {
		in.rules.serve(&s.rules, target)
	}
	in.log.Info("serving", "name", s.name, "device", d.Path(), "queues", len(queues),
		"mode", d.Options().Mode)
	return nil
}

// ownNumber is how results name a device without a block device. No block device has such a number.
func ownNumber(id cache.UUID) uint32 { return binary.LittleEndian.Uint32(id[8:]) | 1<<31 }

// deviceNumber is how results name a block device: they are unique on the machine, and not 0.
func deviceNumber(id int) uint32 { return uint32(id) + 1 }

func closeLanes(queues []*queue) {
	for _, h := range queues {
		if h.lane != nil {
			h.lane.Close()
			h.lane = nil
		}
		h.gathers.close()
		h.pi.close()
	}
}

// findTag looks for the device with our tag.
func findTag(tag uint64) (*ublk.Info, error) {
	list, err := ublk.List()
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		if i.Tag == tag {
			return i, nil
		}
	}
	return nil, nil
}

func (in *Instance) recordOf(id cache.BackingID) (*cache.BackingRecord, error) {
	sb := in.cache.Super()
	for i := range sb.Backings {
		if sb.Backings[i].ID == id {
			return &sb.Backings[i], nil
		}
	}
	return nil, cache.ErrNoBacking
}

// ublkOptions describe the block device of a backing device.
func (in *Instance) ublkOptions(s *served, tag uint64) ublk.Options {
	id := -1
	if conf := in.conf.Backings[s.name]; conf != nil {
		id = conf.UblkID
	}
	disk := s.dev.Info
	zeroes := int64(maxDiscard)
	if !disk.Block {
		zeroes = maxZeroes
	}
	discard := ublk.DiscardParams{MaxZeroesBytes: uint64(zeroes)}
	if disk.Discard {
		discard.MaxDiscardBytes = maxDiscard
		discard.GranularityBytes = uint32(max(disk.QueueLimit("discard_granularity"), s.b.LBS()))
	}
	o := ublk.Options{
		ID: id, Queues: in.conf.Queues, Depth: orDefault(in.conf.Depth, defaultDepth),
		MaxIOBytes: orDefault(int(in.conf.MaxIO), defaultMaxIO), Mode: in.copyMode(),
		Recovery: ublk.RecoveryReissue, Tag: tag, OOMScoreAdj: oomScoreAdj,
		Entries: 2 * orDefault(in.conf.Depth, defaultDepth),
		Params: ublk.Params{
			SizeBytes: uint64(s.b.Size()), LogicalBlockBytes: uint32(s.b.LBS()),
			PhysicalBlockBytes: cache.BlockSize, IOMinBytes: cache.BlockSize,
			VolatileCache: true, FUA: true, Rotational: in.ssdInfo.Rotational,
			Discard: &discard,
		},
		OnError: func(err error) { in.log.Error("ublk", "name", s.name, "error", err) },
		OnFatal: func(err error) {
			in.log.Error("a queue cannot go on; the devices wait for a new daemon", "name", s.name,
				"error", err)
			os.Exit(exitPanic)
		},
	}
	// Where there is integrity metadata, that is what carries attributes.
	o.SharedMemory = in.kernel.Has(ublk.FeatureSharedMemory)
	if in.wantsIntegrity(s) {
		o.Mode, o.SharedMemory = ublk.UserCopy, false
		o.Params.Integrity = &ublk.IntegrityParams{
			Flags: pi.Flags, MetadataBytes: pi.Bytes, PIOffset: pi.TupleOff, Checksum: pi.Checksum,
		}
	}
	return o
}

// wantsIntegrity reports whether a device is to have integrity metadata, and can have it. On a kernel
// without it nothing is lost but the checks on the way: none of it is stored.
func (in *Instance) wantsIntegrity(s *served) bool {
	conf := in.conf.Backings[s.name]
	if conf == nil || !conf.Integrity {
		return false
	}
	if !in.kernel.Has(ublk.FeatureIntegrity) {
		in.log.Warn("served without integrity metadata: it needs Linux 7.0", "name", s.name)
		return false
	}
	return true
}

func orDefault(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}

// copyMode chooses how request data is reached. Data that is checked or summed has to be visible;
// without checksums requests can pass through without a copy.
func (in *Instance) copyMode() ublk.CopyMode {
	switch {
	case in.conf.Copy == "copy",
		!in.kernel.Has(ublk.FeatureAutoBuffers | ublk.FeatureZeroCopy | ublk.FeatureUserCopy):
		return ublk.Copy
	case in.cache.Checksums():
		return ublk.RingCopy
	}
	return ublk.AutoZeroCopy
}
