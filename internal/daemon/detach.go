package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ubcache/cache"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// detach writes everything back and then gives up a backing device. The writing goes on when the
// client hangs up and after a restart; a detach of the same device then goes on with it.
func (in *Instance) detach(ctx context.Context, a control.DetachArgs, progress control.ProgressFunc) (
	any, error,
) {
	what := "detach " + a.Name
	s, err := in.find(a.Name)
	if err != nil {
		if d, ok, e := in.detachConfigured(a); ok || e != nil {
			return d, e
		}
		return nil, err
	}
	id := s.b.ID()
	if why := in.unreachable(s); why != "" && !a.Force && !a.NoWait {
		return nil, report.Refuse(what, why, "bring it back, or --force loses its dirty data")
	}
	if err := in.beginDetach(id); err != nil {
		return nil, report.Wrap(what, err, "")
	}
	if a.NoWait {
		d, _ := in.device(uint16(id))
		return d, nil
	}
	err = in.drain(ctx, s, progress)
	if errors.Is(err, context.Canceled) || err != nil && !a.Force {
		if errors.Is(err, context.Canceled) {
			return nil, report.Fail(what, "interrupted", "writing goes on; detach again to finish")
		}
		hint := "--force gives up what is not written back; detach again to go on"
		if errors.Is(err, cache.ErrDirtyBad) {
			hint = "--force gives those blocks up"
		}
		return nil, report.Wrap(what, err, hint)
	}
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	r, err := in.recordOf(id)
	if err != nil || !r.Detaching {
		return nil, report.Fail(what, "it was cancelled", "")
	}
	d, _ := in.device(uint16(id))
	// From here on a client that hangs up does not leave it half done.
	ctx = context.Background()
	if by := in.stillUsedBy(s); by != "" {
		return nil, report.Refuse(what, by, "all data is written back; unmount it and detach again, "+
			"or --cancel")
	}
	if err := in.unserve(ctx, s, false); err != nil {
		return nil, report.Wrap(what, err, "all data is written back; close it and detach again")
	}
	if err := in.forget(ctx, s, a.Force); err != nil {
		if errors.Is(err, cache.ErrGivenUp) {
			return nil, report.Wrap(what, err, "it is not served any more; bring the SSD back and detach again")
		}
		if _, gone := in.recordOf(id); gone == nil && s.dev != nil && !in.opts.NoUblk {
			err = errors.Join(err, in.serve(ctx, s))
		}
		hint := ""
		if errors.Is(err, cache.ErrBusy) {
			hint = "detach again when it answers, or stop the cache"
		}
		return nil, report.Wrap(what, err, hint)
	}
	d.State, d.Service, d.DirtyBytes, d.Path = "detached", "offline", 0, ""
	return d, nil
}

// unreachable says why dirty data cannot be written back now; empty if it can, or there is none.
func (in *Instance) unreachable(s *served) string {
	in.mu.Lock()
	dev, g, problem := s.dev, s.guard, s.problem
	in.mu.Unlock()
	switch {
	case dev == nil && s.b.Remaining() == 0 && in.onlyRecorded(s):
		return "" // an attach that was cut short
	case dev == nil:
		return "its device is missing: " + problem
	case g != nil && s.b.Remaining() > 0:
		if why := g.problem(); why != "" {
			return "its device is " + why
		}
	}
	return ""
}

func (in *Instance) beginDetach(id cache.BackingID) error {
	if err := in.change(); err != nil {
		return err
	}
	defer in.changing.Unlock()
	if err := in.cache.BeginDetach(id); err != nil {
		return err
	}
	in.keepSuperNow()
	return nil
}

// cancelDetach puts a backing device back in service.
func (in *Instance) cancelDetach(_ context.Context, a control.NameArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	r, err := in.recordOf(s.b.ID())
	if err != nil {
		return nil, err
	}
	if !r.Detaching {
		return nil, report.Fail("cancel detach of "+a.Name, "it is not being detached", "")
	}
	if err := in.cache.CancelDetach(s.b.ID()); err != nil {
		return nil, report.Wrap("cancel detach of "+a.Name, err, "")
	}
	in.keepSuperNow()
	d, _ := in.device(uint16(s.b.ID()))
	return d, nil
}

// flush writes dirty data back, of one backing device or of all, and keeps it cached.
func (in *Instance) flush(ctx context.Context, a control.NameArgs, progress control.ProgressFunc) (
	any, error,
) {
	list := in.list()
	if a.Name != "" {
		s, err := in.find(a.Name)
		if err != nil {
			return nil, err
		}
		list = []*served{s}
	}
	var result []control.Device
	for _, s := range list {
		id := s.b.ID()
		if err := in.cache.SetDrain(id, true); err != nil {
			return nil, report.Wrap("flush "+s.name, err, "")
		}
		err := in.drain(ctx, s, progress)
		if e := in.cache.SetDrain(id, false); err == nil {
			err = e
		}
		if err != nil {
			return nil, report.Wrap("flush "+s.name, err, "")
		}
		d, _ := in.device(uint16(id))
		result = append(result, d)
	}
	if err := in.cache.Sync(ctx); err != nil {
		return nil, report.Wrap("flush", err, "")
	}
	return result, nil
}

// drain waits until nothing is left to write back.
func (in *Instance) drain(ctx context.Context, s *served, progress control.ProgressFunc) error {
	if s.dev == nil && s.b.Remaining() > 0 {
		return fmt.Errorf("its device is missing: %s", s.problem)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(in.life, cancel)()
	total := int64(0)
	last := time.Time{}
	return in.cache.WaitDrained(ctx, s.b.ID(), func(left int64) {
		total = max(total, left)
		if left > 0 && time.Since(last) < 250*time.Millisecond {
			return
		}
		last = time.Now()
		progress(control.Progress{
			What: s.name, LeftBytes: left * cache.BlockSize, TotalBytes: total * cache.BlockSize,
		})
	})
}

// change begins a change of what is served; in.changing is to be unlocked after it.
func (in *Instance) change() error {
	in.changing.Lock()
	if in.isStopped() {
		in.changing.Unlock()
		return report.Fail("", "cache "+in.opts.Name+" is stopping", "")
	}
	return nil
}

// device describes a backing device as it is served.
func (in *Instance) device(id uint16) (control.Device, bool) {
	var d control.Device
	in.mu.Lock()
	s := in.mu.served[cache.BackingID(id)]
	in.mu.Unlock()
	r, err := in.recordOf(cache.BackingID(id))
	if s == nil || err != nil {
		return d, false
	}
	for _, b := range in.cache.Status().Backings {
		if b.ID == r.ID {
			d.BackingStatus = b
		}
	}
	d.Name = s.name
	d.DataOff, d.Settings = r.DataOff, showSettings(r.Mode, r.Tunables)
	d.Identity = control.DeviceIdentity{
		SizeBytes: r.Identity.Size, Serial: r.Identity.Serial, FSType: r.Identity.FSType,
		FSUUID: r.Identity.FSUUID,
	}
	d.Rules, d.RuleProblems = in.rules.problems(&s.rules)
	in.mu.Lock()
	u, link, dev, g := s.ublk, s.link, s.dev, s.guard
	d.Service, d.Problem = "offline", s.problem
	in.mu.Unlock()
	if dev != nil {
		d.BackingDevice = dev.Info.Path
	} else {
		d.Service = "missing"
	}
	if g != nil && d.Problem == "" {
		d.Problem = g.problem()
	}
	if u != nil {
		d.Service, d.Path, d.Link = "served", u.Path(), link
		d.Queues, d.CopyMode = u.Options().Queues, u.Options().Mode.String()
		d.SharedMemory = s.shared.count()
		d.Integrity = u.Options().Params.Integrity != nil
		d.UsedBy = in.usedBy(s)
	}
	return d, true
}
