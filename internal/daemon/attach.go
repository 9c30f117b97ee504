package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/header"
	"ubcache/internal/report"
	"ubcache/ublk"
)

// attachWait is for programs that look at a new device for a moment, such as udev.
const attachWait = 2 * time.Second

// attach adds a backing device to the running cache and serves it.
func (in *Instance) attach(_ context.Context, a control.AttachArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	what := "attach " + a.Device
	// A client that hangs up does not leave it half attached.
	ctx := context.Background()
	o, err := in.planAttach(&a)
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	dev, err := in.openNew(ctx, &a, &o)
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	s, err := in.addBacking(ctx, &a, o, dev)
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	d, _ := in.device(uint16(s.b.ID()))
	return d, nil
}

// planAttach checks what needs no device.
func (in *Instance) planAttach(a *control.AttachArgs) (o cache.AttachOptions, err error) {
	if err := config.CheckName(a.Name); err != nil {
		return o, report.Misuse("%v", err)
	}
	if loss, lost := in.cache.Loss(); lost { // before a header is written
		return o, fmt.Errorf("%w: %s", cache.ErrSSDLost, loss.Why)
	}
	if a.Integrity && !in.opts.NoUblk && !in.kernel.Has(ublk.FeatureIntegrity) {
		return o, report.Refuse("attach "+a.Device, "this kernel's ublk has no integrity metadata",
			"needs Linux 7.0; leave out --integrity")
	}
	file, err := config.Load(in.opts.ConfigPath)
	if err != nil {
		return o, err
	}
	if err := in.checkCut("attach "+a.Device, a.Name, file); err != nil {
		return o, err
	}
	if other, ok := file.FindBacking(a.Name); ok {
		return o, report.Refuse("attach "+a.Device,
			fmt.Sprintf("cache %s already has a backing device named %s", other, a.Name),
			"choose another --name")
	}
	if a.UblkID < 0 {
		a.UblkID = file.FreeUblkID(func(id int) bool {
			_, err := ublk.Lookup(id)
			return !in.opts.NoUblk && !errors.Is(err, ublk.ErrNotFound)
		})
	}
	o = cache.AttachOptions{Name: a.Name, Tunables: cache.DefaultTunables(), UUID: cache.NewUUID()}
	return o, applySettings(a.Settings, &o.Mode, &o.Tunables)
}

// openNew opens the device and refuses what would do harm. Until it returns nothing is changed.
func (in *Instance) openNew(ctx context.Context, a *control.AttachArgs, o *cache.AttachOptions) (
	*blockdev.Device, error,
) {
	what := "attach " + a.Device
	i, err := blockdev.Inspect(a.Device)
	if err != nil {
		return nil, err
	}
	if what, ok := in.has(i); ok {
		return nil, report.Refuse("attach "+a.Device, what, "")
	}
	if by := i.Users(); by != "" {
		return nil, report.Refuse(what, by, "the device must not be in use; unmount it first")
	}
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	dev, err := i.Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.checkNew(dev, a, o); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return dev, nil
}

// has reports whether the cache has the device already.
func (in *Instance) has(i *blockdev.Info) (what string, ok bool) {
	if i.Path == in.ssdInfo.Path {
		return "it is the SSD of this cache", true
	}
	for _, s := range in.list() {
		if s.dev != nil && s.dev.Info.Path == i.Path {
			return "it is attached already, as " + s.name, true
		}
	}
	return "", false
}

func (in *Instance) checkNew(dev *blockdev.Device, a *control.AttachArgs,
	o *cache.AttachOptions,
) error {
	what, i := "attach "+a.Device, dev.Info
	h, err := header.Read(dev)
	foreign := err == nil && h.Cache != (cache.UUID{}) && h.Cache.String() != in.conf.UUID
	switch {
	case errors.Is(err, header.ErrNewer):
		return report.Refuse(what, err.Error(), "use the newer ubcache")
	case i.Content.Type == blockdev.TypeCache && !a.Force:
		return report.Refuse(what, "it holds "+i.Content.String(), "--force takes it all the same")
	case foreign && !a.Force:
		return report.Refuse(what, fmt.Sprintf("it belongs to cache %s, which may have newer data",
			h.Cache), "detach it there first, or --force takes it all the same")
	case !a.Force:
		if err := in.checkRecorded(what, dev); err != nil {
			return err
		}
	}
	switch {
	case err == nil && !a.Header && h.DataOff != 0:
		return report.Refuse(what, "it has a backing header, its data begins at 1 MiB",
			"use --header, or wipe the header")
	case a.Header && err != nil && i.Content.Type != "" && !a.Force:
		return report.Refuse(what, fmt.Sprintf("it holds %s, which --header would make unreachable",
			i.Content), "leave out --header to keep the data, or --force loses it")
	}
	lbs := i.LogicalBytes
	if in.ssdInfo.LogicalBytes > lbs && !in.cache.Checksums() {
		return report.Refuse(what, fmt.Sprintf("it has sectors of %d bytes and the SSD of %d", lbs,
			in.ssdInfo.LogicalBytes), "that needs a cache with checksums")
	}
	o.LBS = lbs
	o.Identity = cache.Identity{Size: i.SizeBytes, Serial: i.Serial}
	if !a.Header {
		o.Identity.FSType, o.Identity.FSUUID = i.Content.Type, i.Content.UUID
	} else {
		o.DataOff = header.DataOff
	}
	return nil
}

// addBacking makes the device part of the cache. Each step can be repeated or is undone: a crash
// leaves either no backing device or one that the next start serves.
func (in *Instance) addBacking(ctx context.Context, a *control.AttachArgs, o cache.AttachOptions,
	dev *blockdev.Device,
) (s *served, err error) {
	if a.Header {
		if err := in.writeHeader(dev, &o, a); err != nil {
			_ = dev.Close()
			return nil, err
		}
	}
	b, err := in.cache.Attach(o)
	if err != nil {
		_ = dev.Close()
		return nil, err
	}
	s = &served{name: a.Name, b: b, dev: dev}
	if err := in.rules.load(&s.rules, b.Size(), nil); err != nil {
		return nil, errors.Join(err, in.forget(ctx, s, true))
	}
	in.startGuard(s)
	setAbilities(b, dev)
	b.SetNumber(ownNumber(o.UUID))
	err = in.setFile(b.ID(), dev)
	if err == nil {
		in.mu.Lock()
		in.mu.served[b.ID()] = s
		in.mu.Unlock()
		err = config.Edit(in.opts.ConfigPath, func(f *config.File) error {
			return in.configure(f, a, &o, dev.Info)
		})
	}
	if err == nil && !in.opts.NoUblk {
		err = in.serve(ctx, s)
	}
	if err != nil {
		return nil, errors.Join(err, in.forget(ctx, s, true))
	}
	in.keepSuperNow()
	return s, nil
}

// setFile gives a device to the loops.
func (in *Instance) setFile(id cache.BackingID, dev *blockdev.Device) error {
	err := in.bg.do(func() error { return in.bg.setFile(id, driverDevice(dev)) })
	if d := in.directServer(); d != nil && err == nil {
		err = d.join(id, driverDevice(dev))
	}
	return err
}

func (in *Instance) writeHeader(dev *blockdev.Device, o *cache.AttachOptions,
	a *control.AttachArgs,
) error {
	id, err := cache.ParseUUID(in.conf.UUID)
	if err != nil {
		return err
	}
	h := &header.Header{}
	if old, err := header.Read(dev); err == nil {
		h.Seq = old.Seq
	} else if err := header.Clear(dev); err != nil {
		return err
	}
	o.Head = in.cache.Super().Epoch
	h.Cache, h.Backing, h.DataOff, h.Start = id, o.UUID, header.DataOff, o.Head
	h.DeviceSize = dev.Size()
	h.Size = (dev.Size() - header.DataOff) / int64(o.LBS) * int64(o.LBS)
	if h.Size <= 0 {
		return report.Refuse("attach "+a.Device, "it is too small for a header", "")
	}
	return header.Write(dev, h)
}

// configure writes the new backing device into the configuration.
func (in *Instance) configure(f *config.File, a *control.AttachArgs, o *cache.AttachOptions,
	i *blockdev.Info,
) error {
	c := f.Caches[in.opts.Name]
	if c == nil {
		return report.Fail("write configuration", "cache "+in.opts.Name+" is not in it any more", "")
	}
	if c.Backings == nil {
		c.Backings = map[string]*config.Backing{}
	}
	b := &config.Backing{
		UUID: o.UUID.String(), Device: i.StablePath, UblkID: a.UblkID, Integrity: a.Integrity,
	}
	putSettings(b, o.Mode, o.Tunables)
	c.Backings[a.Name] = b
	in.mu.Lock()
	in.conf = c
	in.mu.Unlock()
	return nil
}

// forget takes a backing device that is not served any more out of cache and configuration. lose
// gives up dirty data; if that fails half-way, with cache.ErrGivenUp, the device is left to the cache alone.
func (in *Instance) forget(ctx context.Context, s *served, lose bool) error {
	id := s.b.ID()
	in.renounce(s, true)
	if err := in.unserve(ctx, s, true); err != nil {
		in.renounce(s, false)
		return err
	}
	d := in.directServer()
	if d != nil {
		if err := d.drop(id); err != nil {
			in.renounce(s, false)
			return err
		}
	}
	failed := in.cache.FinishDetach(ctx, id, lose)
	if err := failed; err != nil && !errors.Is(err, cache.ErrGivenUp) {
		if d != nil && s.dev != nil {
			err = errors.Join(err, d.join(id, driverDevice(s.dev)))
		}
		in.renounce(s, false)
		return err
	}
	in.keepSuperNow()
	gone := s.b.Presence() != cache.Present
	in.stopGuard(s) // it reads s.dev
	in.mu.Lock()
	dev := s.dev
	if failed == nil {
		delete(in.mu.served, id)
	} else { // the SSD may have it still, so it is only out of the configuration: nobody serves it, now or after a start
		s.dev, s.problem = nil, "a forced detach of it has failed, which has given up its dirty data"
	}
	in.mu.Unlock()
	in.rules.drop(&s.rules)
	err := in.bg.do(func() error { return in.bg.dropFile(id) })
	switch {
	case dev == nil:
	case gone: // its header goes on naming this cache; --force takes it all the same
		_ = dev.Close()
	default: // nobody is left who would flush it for what was written past the cache
		err = errors.Join(err, releaseHeader(dev), dev.Sync(), dev.Close())
	}
	return errors.Join(failed, err, config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		if c := f.Caches[in.opts.Name]; c != nil {
			delete(c.Backings, s.name)
			in.mu.Lock()
			in.conf = c
			in.mu.Unlock()
		}
		return nil
	}))
}

// releaseHeader notes in the header, if there is one, that no cache has newer data.
func releaseHeader(dev *blockdev.Device) error {
	h, err := header.Read(dev)
	if errors.Is(err, header.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	h.Cache = cache.UUID{}
	return header.Write(dev, h)
}

// DefaultName is the name of a backing device that was given none.
func DefaultName(device string) string { return filepath.Base(device) }
