package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/header"
	"ubcache/internal/report"
)

// recogniseBlocks is how many clean blocks are compared with a device that comes back.
const recogniseBlocks = 256

// find looks for the device: under its old file, where it may have come back to life, else at path, or,
// if that is empty, wherever it is. It runs on the guard's worker.
func (g *guard) find(path string) (f finding) {
	in, s := g.in, g.s
	if !in.enter() {
		return finding{err: errors.New("the cache is stopping")}
	}
	sb := in.cache.Super()
	in.using.RUnlock()
	var r *cache.BackingRecord
	for i := range sb.Backings {
		if sb.Backings[i].ID == g.id {
			r = &sb.Backings[i]
		}
	}
	in.mu.Lock()
	conf := in.conf.Backings[s.name]
	in.mu.Unlock()
	if r == nil || conf == nil {
		return finding{err: cache.ErrNoBacking}
	}
	old := s.dev
	if err := in.opts.alive(old); err == nil {
		f.dev, f.inPlace = old, true
		f.err = g.sameDevice(old, r, &sb)
	} else {
		if path == "" && !g.changed(conf.Device) {
			return finding{err: errNothingNew}
		}
		ctx, cancel := context.WithTimeout(in.life, attachWait)
		defer cancel()
		if path != "" {
			f.dev, f.err = in.openAt(ctx, path, r, &sb, old)
		} else {
			f.dev, f.err = in.openBacking(ctx, conf, r, &sb, old)
		}
		if f.err == nil {
			f.err = in.opts.alive(f.dev)
		}
	}
	if f.err == nil {
		f.err = newestHeader(f.dev, r)
	}
	if f.err == nil {
		f.err = g.recognise(f.dev)
	}
	if f.err != nil {
		f.drop()
		f.dev = nil
	}
	return f
}

// errNothingNew: since the last search no device has come.
var errNothingNew = errors.New("it is still gone")

const (
	// searchMore is for how long the search goes on when devices have come or gone: they may not be
	// ready at once, or in use by who looks at new devices. searchEvery is how often it is made anyway.
	searchMore  = 10 * time.Second
	searchEvery = 30 * time.Second
)

// changed reports whether it is worth while to look at all devices again, which costs I/O on each. It
// belongs to the worker.
func (g *guard) changed(path string) bool {
	seen := blockdev.Census()
	if i, err := blockdev.Stat(path); err == nil {
		seen += fmt.Sprint(i.Path, i.Block, i.SizeBytes, g.s.dev.Is(i))
	}
	now := time.Now()
	if seen != g.census.text {
		g.census.text, g.census.changed = seen, now
	}
	if now.Sub(g.census.changed) > searchMore && now.Sub(g.census.searched) < searchEvery {
		return false
	}
	g.census.searched = now
	return true
}

// sameDevice checks the identity of a device that has come back to life: a device-mapper table, for
// one, can make another device of it.
func (g *guard) sameDevice(dev *blockdev.Device, r *cache.BackingRecord, sb *cache.Superblock) error {
	if dev.Info.Block {
		i, err := blockdev.Stat(dev.Info.Path)
		if err != nil {
			return err
		}
		if !dev.Is(i) {
			return fmt.Errorf("%s is another device by now", i.Path)
		}
		if err := checkIdentity(i, r); err != nil {
			return err
		}
	}
	return checkHeader(dev, r, sb.UUID)
}

// newestHeader makes sure that the device's header is the one that this start has written, and not one of a copy
// that was made before, or of another start elsewhere.
func newestHeader(dev *blockdev.Device, r *cache.BackingRecord) error {
	if r.DataOff == 0 || r.Head == 0 {
		return nil
	}
	h, err := header.Read(dev)
	if err != nil {
		return err
	}
	if h.Start != r.Head {
		return report.Refuse("", fmt.Sprintf("the header of %s is of start %d of the cache instead of %d: it is an older "+
			"copy, or was used without the cache", dev.Info.Path, h.Start, r.Head),
			"correct the device in the configuration; detach --force gives up its dirty data")
	}
	return nil
}

// recognise compares the device with what is known of it.
func (g *guard) recognise(dev *blockdev.Device) error {
	if !g.in.enter() {
		return errors.New("the cache is stopping")
	}
	defer g.in.using.RUnlock()
	_, err := g.in.cache.Recognise(g.id, dev, recogniseBlocks)
	if errors.Is(err, cache.ErrIdentity) {
		return report.Refuse("", fmt.Sprintf("%s is not the backing device %s as it was: %v",
			dev.Info.Path, g.s.name, err),
			"it was written to without the cache; detach --force gives up its dirty data")
	}
	return err
}

// openAt opens a device that the operator names.
func (in *Instance) openAt(ctx context.Context, path string, r *cache.BackingRecord,
	sb *cache.Superblock, old *blockdev.Device,
) (*blockdev.Device, error) {
	i, err := in.inspectUnless(old, path)
	if err != nil {
		return nil, err
	}
	if err := checkIdentity(i, r); err != nil {
		return nil, err
	}
	return in.openChecked(ctx, i, r, sb)
}

// bringBack puts the device that was found in the place of the old one, unless somebody is in the way:
// then it is tried again soon. The guard's goroutine has entered the instance.
func (g *guard) bringBack() {
	in, f := g.in, g.found
	if !in.changing.TryLock() {
		return
	}
	defer in.changing.Unlock()
	err := in.replaceDevice(g.s, f.dev)
	if errors.Is(err, errBusySwap) && time.Since(g.since) < probeTime {
		return
	}
	g.found = nil
	if err != nil {
		f.drop()
		in.log.Error("backing device is back but cannot be used", "name", g.s.name, "error", err)
		g.answer(err)
		return
	}
	if g.volatile {
		in.cache.Lost(g.id)
	}
	in.log.Info("backing device is back", "name", g.s.name, "device", f.dev.Info.Path, "after",
		time.Since(g.gone).Round(time.Millisecond))
	g.gone = time.Time{}
	g.mu.Lock()
	g.mu.gone, g.mu.refused = time.Time{}, ""
	g.mu.Unlock()
	g.volatile = f.dev.Volatile()
	in.cache.SetPresence(g.id, cache.Present)
	if g.asked != nil && g.asked.path != "" {
		in.rename(g.s, f.dev)
	}
	g.answer(nil)
}

// rename writes the name into the configuration that an operator has given for a device that is not
// found by itself.
func (in *Instance) rename(s *served, dev *blockdev.Device) {
	err := config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		if c := f.Caches[in.opts.Name]; c != nil && c.Backings[s.name] != nil {
			c.Backings[s.name].Device = dev.Info.StablePath
			in.mu.Lock()
			in.conf = c
			in.mu.Unlock()
		}
		return nil
	})
	if err != nil {
		in.log.Warn("the device's new name is not in the configuration", "name", s.name, "error", err)
	}
}

// laneThread is a lane's thread: a loop or a ublk queue.
type laneThread interface {
	do(f func() error) error
	quiet(id cache.BackingID) bool
	setFile(id cache.BackingID, dev device) error
}

// replaceDevice gives all rings dev for the device of s, which is absent: so no operation begins. Those
// on the old file must be over, lest a write that hung in it comes after others that are newer.
// in.changing is held.
func (in *Instance) replaceDevice(s *served, dev *blockdev.Device) error {
	id := s.b.ID()
	threads := []laneThread{in.bg}
	if d := in.directServer(); d != nil {
		threads = append(threads, d.loop)
	}
	for _, h := range s.queues {
		threads = append(threads, h)
	}
	for _, t := range threads {
		err := t.do(func() error {
			if !t.quiet(id) {
				return errBusySwap
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if dev == s.dev {
		return nil
	}
	for i, t := range threads {
		err := t.do(func() error { return t.setFile(id, driverDevice(dev)) })
		if err != nil {
			for _, t := range threads[:i+1] {
				err = errors.Join(err, t.do(func() error { return t.setFile(id, driverDevice(s.dev)) }))
			}
			return fmt.Errorf("give %s to the rings: %w", dev.Info.Path, err)
		}
	}
	setAbilities(s.b, dev)
	in.mu.Lock()
	old := s.dev
	s.dev = dev
	in.mu.Unlock()
	_ = old.Close() // it is gone
	return nil
}

// reopen brings a backing device back that is gone, from the device that is named or wherever it is.
func (in *Instance) reopen(ctx context.Context, a control.ReopenArgs, _ control.ProgressFunc) (any,
	error,
) {
	what := "reopen " + a.Name
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	g, dev := s.guard, s.dev
	in.mu.Unlock()
	if dev == nil || g == nil {
		if err := in.reopenMissing(s, a.Device); err != nil {
			return nil, report.Wrap(what, err, "")
		}
		d, _ := in.device(uint16(s.b.ID()))
		return d, nil
	}
	q := ask{path: a.Device, reply: make(chan error, 1)}
	select {
	case g.asks <- q:
	case <-g.done:
		return nil, report.Fail(what, "cache "+in.opts.Name+" is stopping", "")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err = <-q.reply:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, report.Wrap(what, err, "")
	}
	d, _ := in.device(uint16(s.b.ID()))
	return d, nil
}

// reopenMissing serves a device that was missing at the start.
func (in *Instance) reopenMissing(s *served, path string) error {
	if err := in.change(); err != nil {
		return err
	}
	defer in.changing.Unlock()
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return err
	}
	conf := in.conf.Backings[s.name]
	switch {
	case s.dev != nil: // meanwhile
		return nil
	case conf == nil:
		return report.Refuse("", s.name+" is not in the configuration", "correct "+in.opts.ConfigPath)
	}
	sb := in.cache.Super()
	ctx, cancel := context.WithTimeout(in.life, attachWait)
	defer cancel()
	var dev *blockdev.Device
	if path != "" {
		dev, err = in.openAt(ctx, path, r, &sb, nil)
	} else {
		dev, err = in.openBacking(ctx, conf, r, &sb, nil)
	}
	if err != nil {
		return err
	}
	if err := in.join(s, dev); err != nil {
		return err
	}
	if path != "" {
		in.rename(s, dev)
	}
	return nil
}
