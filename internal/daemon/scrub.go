package daemon

import (
	"context"
	"errors"
	"time"

	"ubcache/cache"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// scrub verifies what is cached of a backing device. If the client hangs up it ends, and the next one goes
// on where it was, with what it had found.
func (in *Instance) scrub(ctx context.Context, a control.ScrubArgs, progress control.ProgressFunc) (
	any, error,
) {
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	before := in.lastScrub(s)
	if a.Restart || before.Complete {
		before = cache.ScrubReport{}
	}
	o := cache.ScrubOptions{
		From: before.Next, Rate: a.Rate, Fix: a.Fix, NoBacking: a.NoBacking || s.dev == nil,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(in.life, cancel)()
	last := time.Time{}
	rep, err := in.cache.Scrub(ctx, s.b.ID(), o, func(r cache.ScrubReport) {
		in.noteScrub(s, before, r)
		if time.Since(last) < 250*time.Millisecond {
			return
		}
		last = time.Now()
		progress(control.Progress{What: s.name, LeftBytes: r.Size - r.Next, TotalBytes: r.Size})
	})
	if rep.Size > 0 { // else it has not begun
		in.noteScrub(s, before, rep)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return nil, report.Fail("scrub "+a.Name, "interrupted", "scrub again to go on")
	case err != nil:
		return nil, report.Wrap("scrub "+a.Name, err, "")
	case !rep.Complete:
		return nil, report.Fail("scrub "+a.Name, "it was ended by a detach or stop", "")
	}
	return in.showScrub(s), nil
}

func (in *Instance) lastScrub(s *served) cache.ScrubReport {
	in.mu.Lock()
	defer in.mu.Unlock()
	return s.scrub
}

// noteScrub adds what a scrub has found to what the interrupted one had before it.
func (in *Instance) noteScrub(s *served, before, r cache.ScrubReport) {
	r.Checked += before.Checked
	r.Compared += before.Compared
	r.Healed += before.Healed
	r.Fixed += before.Fixed
	r.Bad = append(append(cache.Ranges{}, before.Bad...), r.Bad...)
	r.Differs = append(append(cache.Ranges{}, before.Differs...), r.Differs...)
	r.BackingErrors = append(append(cache.Ranges{}, before.BackingErrors...), r.BackingErrors...)
	r.Truncated = r.Truncated || before.Truncated
	in.mu.Lock()
	s.scrub = r
	in.mu.Unlock()
}

// scrubbed is what the last scrub has found.
func (in *Instance) scrubbed(_ context.Context, a control.NameArgs, _ control.ProgressFunc) (any, error) {
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	return in.showScrub(s), nil
}

func (in *Instance) showScrub(s *served) control.Scrub {
	out := control.Scrub{Name: s.name, ScrubReport: in.lastScrub(s)}
	if s.dev != nil {
		out.BackingDevice = s.dev.Info.Path
	}
	for _, list := range []*cache.Ranges{&out.Bad, &out.Differs, &out.BackingErrors} {
		if *list == nil {
			*list = cache.Ranges{}
		}
	}
	return out
}

// bad lists the sectors of dirty data that the SSD has lost.
func (in *Instance) bad(_ context.Context, a control.NameArgs, _ control.ProgressFunc) (any, error) {
	if !in.enter() {
		return nil, report.Fail("", "cache "+in.opts.Name+" is stopping", "")
	}
	defer in.using.RUnlock()
	list := in.list()
	if a.Name != "" {
		s, err := in.find(a.Name)
		if err != nil {
			return nil, err
		}
		list = []*served{s}
	}
	out := []control.Bad{}
	for _, s := range list {
		ranges, more, err := in.cache.BadRanges(s.b.ID())
		if err != nil {
			return nil, report.Wrap("bad "+s.name, err, "")
		}
		if ranges == nil {
			ranges = cache.Ranges{}
		}
		out = append(out, control.Bad{
			Cache: in.opts.Name, Name: s.name, Bytes: ranges.Bytes(), Ranges: ranges, Truncated: more,
		})
	}
	return out, nil
}
