package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/config"
	"ubcache/internal/header"
	"ubcache/internal/missed"
	"ubcache/internal/report"
)

// A start that does not find the SSD serves the backing devices of which the SSD has no dirty data, at their own
// speed. That is known of a device if the cache was stopped in order with nothing of it dirty (the copy of the
// superblock in the state folder), or if it has gone on without the SSD before (its marker). Of others the
// operator may say so (start --without-ssd). What is changed is recorded as missed, as after a loss, so that an SSD
// that returns is taken back, warm if nothing was changed, or refused.

// ssdPatience is how long such a start waits for the SSD: a device may be late at boot.
const ssdPatience = 10 * time.Second

// waitForSSD looks for the SSD until it is there, as far as a start without it is possible.
func (in *Instance) waitForSSD(ctx context.Context) (*blockdev.Info, error) {
	end := time.Now().Add(min(ssdPatience, in.opts.Wait))
	if len(in.opts.WithoutSSD) > 0 { // who says that knows that it does not come
		end = time.Now()
	}
	for noted := false; ; noted = true {
		i, err := in.findSSD()
		if err == nil || !isMissing(err) {
			return i, err
		}
		plan, perr := in.planWithout()
		if perr != nil || len(plan) == 0 || time.Now().After(end) {
			return nil, cmp.Or(perr, err)
		}
		if !noted {
			in.opts.Note("waiting for the SSD (" + err.Error() + ")")
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// withoutSSD is a device that a start without the SSD can serve.
type withoutSSD struct {
	r *cache.BackingRecord
	// given says that it is for the operator's word: the SSD may have dirty data of it.
	given bool
}

// planWithout finds the devices, by name, that can be served without the SSD.
func (in *Instance) planWithout() (map[string]withoutSSD, error) {
	sb, err := missed.ReadSuper(in.stateDir, in.conf.UUID)
	if err != nil || sb == nil {
		return nil, err
	}
	in.copied = sb
	plan := map[string]withoutSSD{}
	for i := range sb.Backings {
		r := &sb.Backings[i]
		name := in.nameOf(r)
		if name == "" {
			continue
		}
		m, err := missed.Read(in.stateDir, in.conf.UUID, r.UUID.String())
		if err != nil {
			return nil, err
		}
		clean := sb.Clean && r.Dirty == 1
		if m != nil {
			clean = m.DirtyBlocks == 0
		}
		if clean || slices.Contains(in.opts.WithoutSSD, name) {
			plan[name] = withoutSSD{r, !clean}
		}
	}
	return plan, nil
}

// nameOf is the name that the configuration has for a backing device; empty if it has none.
func (in *Instance) nameOf(r *cache.BackingRecord) string {
	for name, b := range in.conf.Backings {
		if b.UUID == r.UUID.String() {
			return name
		}
	}
	return ""
}

// goWithout opens the devices that can be served without the SSD; false if there is none.
func (in *Instance) goWithout(ctx context.Context, why error) (bool, error) {
	plan, err := in.planWithout()
	if err != nil || len(plan) == 0 {
		return false, err
	}
	sb := in.copied
	in.without = plan
	in.ssdInfo = &blockdev.Info{Path: in.conf.Device, LogicalBytes: cache.SectorSize}
	in.log.Error("the SSD is not there, or not to be used: the devices that lack nothing without it are served at the speed of the disks",
		"error", why)
	in.opts.Note("starting without the SSD: " + why.Error())
	for i := range sb.Backings {
		r := &sb.Backings[i]
		name := in.nameOf(r)
		s := &served{name: cmp.Or(name, r.Name)}
		in.mu.served[r.ID] = s
		p, ok := plan[name]
		switch {
		case name == "":
			s.problem = "not in the configuration"
			continue
		case !ok:
			s.problem = errLacking(name).Error()
			continue
		}
		dev, err := in.openBacking(ctx, in.conf.Backings[name], r, sb, nil)
		if err != nil {
			if !isMissing(err) {
				return false, report.Wrap("open backing device "+name, err, "")
			}
			s.problem = err.Error()
			continue
		}
		if err := p.mayServe(name, dev); err != nil {
			s.problem = err.Error()
			_ = dev.Close()
			continue
		}
		s.dev = dev
	}
	return true, nil
}

// errLacking says why a device is not served without the SSD.
func errLacking(name string) error {
	return report.Refuse("", "the SSD may have newer data of it than the disk",
		"bring the SSD back, or give up what it has: start --without-ssd "+name)
}

// mayServe decides, by the header of the device, if it has one, whether it may be served without the SSD.
func (p *withoutSSD) mayServe(name string, dev *blockdev.Device) error {
	if p.r.DataOff == 0 || p.given {
		return nil
	}
	h, err := header.Read(dev)
	switch {
	case err != nil:
		return err
	case h.Missed && h.Dirty != 0, !h.Missed && p.r.Head != 0 && h.Start != p.r.Head:
		return errLacking(name) // the cache has run elsewhere since
	}
	return nil
}

// recordGivenUp records of the devices that the operator has named, and that are there, that what the SSD has of them is
// given up. It comes when nothing of the start can be refused any more: the SSD of a start that was refused has
// missed nothing.
func (in *Instance) recordGivenUp() {
	for _, s := range in.list() {
		p, ok := in.without[s.name]
		if !ok || !p.given || s.dev == nil {
			continue
		}
		if err := in.giveUp(s.name, p, s.dev); err != nil {
			s.problem = err.Error()
			_ = s.dev.Close()
			s.dev = nil
		}
	}
}

// giveUp writes the marker of a device that is served although the SSD may have dirty data of it.
func (in *Instance) giveUp(name string, p withoutSSD, dev *blockdev.Device) error {
	sb := in.copied
	in.log.Warn("what the SSD has of the device is given up, as start --without-ssd says", "name", name)
	m := cache.Missed{
		Cache: sb.UUID, Epoch: sb.Epoch, Backing: p.r.UUID, ID: p.r.ID, Name: name, Dirty: cache.DirtyUnknown,
	}
	if sb.Clean && p.r.Dirty != 0 {
		m.Dirty = int64(p.r.Dirty - 1)
	}
	return in.writeMarker(m, dev)
}

// openWithout starts the engine without the SSD.
func (in *Instance) openWithout() (err error) {
	stall, loss := ssdLimits(in.conf)
	in.cache, err = cache.OpenWithout(in.copied, cache.Options{
		StallLimit: stall, LossLimit: loss, Missed: in.markMissed, Health: in.ssdHealth, Suspect: in.suspect,
	})
	return err
}

// givenUp names the devices that are served without the SSD although that may have dirty data of them.
func (in *Instance) givenUp() (names []string) {
	for name, p := range in.without {
		if p.given {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// lateWithout is admitLate of a cache that was started without its SSD.
func (in *Instance) lateWithout(s *served, dev *blockdev.Device) error {
	p, ok := in.without[s.name]
	if !ok {
		return errLacking(s.name)
	}
	if err := p.mayServe(s.name, dev); err != nil || !p.given {
		return err
	}
	return in.giveUp(s.name, p, dev)
}

// keepSuper copies the superblock to the state folder. Where that is impossible, on a full filesystem for instance, a start
// without the SSD is, too. An older copy may stay if it is not of a stop in order: it says of nothing that it is not dirty.
// Any other is removed.
func (in *Instance) keepSuper(sb *cache.Superblock) error {
	err := missed.WriteSuper(in.stateDir, sb)
	if err == nil {
		return nil
	}
	id := sb.UUID.String()
	if old, rerr := missed.ReadSuper(in.stateDir, id); rerr != nil || old != nil && old.Clean {
		if rerr := missed.RemoveSuper(in.stateDir, id); rerr != nil {
			return report.Wrap("start cache "+in.opts.Name, err, "make state-dir writable: what it has is out of date")
		}
	}
	in.log.Warn("no copy of the superblock outside the SSD: without the SSD the cache will not start", "error", err)
	return nil
}

// keepSuperNow is keepSuper while the cache runs, when what the SSD has of its backing devices has changed. in.changing
// is held.
func (in *Instance) keepSuperNow() {
	if _, lost := in.cache.Loss(); lost { // what has changed is not on the SSD, perhaps
		return
	}
	sb := in.cache.Super()
	if err := in.keepSuper(&sb); err != nil {
		in.log.Error("the copy of the superblock in state-dir is out of date", "error", err)
	}
}

// withoutSSDHint says what is known of the backing devices of a cache whose SSD is not to be found: their
// markers tell whether they lack anything. It is empty if there are none.
func (in *Instance) withoutSSDHint() string {
	var lacking, unknown []string
	for _, name := range in.conf.BackingNames() {
		m, err := missed.Read(in.stateDir, in.conf.UUID, in.conf.Backings[name].UUID)
		switch {
		case err == nil && m != nil && m.DirtyBlocks > 0:
			lacking = append(lacking, fmt.Sprintf("%s of %s", config.Size(m.DirtyBlocks*cache.BlockSize).Human(),
				name))
		case err != nil || m == nil || m.DirtyBlocks != 0:
			unknown = append(unknown, name)
		}
	}
	var hint []string
	if len(lacking) > 0 {
		hint = append(hint, strings.Join(lacking, ", ")+" is on the SSD only")
	}
	if len(unknown) > 0 {
		hint = append(hint, "newer data of "+strings.Join(unknown, ", ")+" may be")
	}
	if in.copied != nil && len(hint) > 0 {
		hint = append(hint, "start --without-ssd NAME gives up what the SSD has and serves the disk as it is")
	}
	return strings.Join(hint, "; ")
}
