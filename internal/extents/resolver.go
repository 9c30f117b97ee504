package extents

import (
	"fmt"
	"sync"
	"time"

	"ubcache/attrs/rules"
)

// Update is what is known of a Spec. A later one takes its place.
type Update struct {
	ID uint64
	// Found says that the path leads to a file or folder whose place on the device can be found out;
	// else Problem says why not, and there are no ranges.
	Found bool
	// Looking is set as long as its files have not all been looked at for the first time.
	Looking bool
	Files   int
	// Ranges are where the data is on the target, sorted and joined.
	Ranges []rules.Range
	// Problem is what keeps the ranges from being right at once, or at all; it may be empty.
	Problem string
}

const (
	// quiet is how long changes are collected before somebody looks at them.
	quiet = 200 * time.Millisecond
	// shareOfTime bounds the work: after a look of any length there is a rest that many times as long.
	shareOfTime = 10
	// checkEvery is how often it is checked where the paths lead to, and what is unsettled asked for.
	checkEvery = 5 * time.Second
	// sweepEvery is how often all files are looked at, and sweepShare what bounds the work of that.
	sweepEvery = time.Minute
	sweepShare = 100
	// forceEvery is at which sweep the filesystem is asked about each file.
	forceEvery = 10
)

// Resolver watches files and folders. Its work is done by one goroutine.
type Resolver struct {
	report   func(Update)
	commands chan func()
	quit     chan struct{}
	stopped  sync.WaitGroup

	// The rest belongs to the goroutine.
	trees     map[uint64]*tree
	watches   *watches
	mounts    *mounts
	ask       *fiemap
	ticker    *time.Ticker
	sweeps    int
	nextSweep time.Time
}

// NewResolver starts a resolver. It calls report, on its own goroutine, with each change.
func NewResolver(report func(Update)) (*Resolver, error) {
	w, err := newWatches()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	m, err := watchMounts()
	if err != nil {
		w.close()
		return nil, fmt.Errorf("watch mounts: %w", err)
	}
	r := &Resolver{
		report: report, commands: make(chan func()), quit: make(chan struct{}),
		trees: map[uint64]*tree{}, watches: w, mounts: m, ask: &fiemap{},
		ticker: time.NewTicker(checkEvery), nextSweep: time.Now().Add(sweepEvery),
	}
	r.stopped.Go(r.run)
	return r, nil
}

// Close ends the resolver after what it is doing.
func (r *Resolver) Close() {
	close(r.quit)
	r.stopped.Wait()
	r.mounts.close()
	r.watches.close()
}

// Watch begins to watch a file or folder. There is an update for it at once, with what is wrong or
// with Found, and another one when its files have been looked at.
func (r *Resolver) Watch(s Spec) { r.do(func() { r.watch(s) }) }

// Drop ends the watching of a Spec by its ID.
func (r *Resolver) Drop(id uint64) {
	r.do(func() {
		if t := r.trees[id]; t != nil {
			t.forget()
			delete(r.trees, id)
		}
	})
}

func (r *Resolver) do(f func()) {
	select {
	case r.commands <- f:
	case <-r.quit:
	}
}

func (r *Resolver) watch(s Spec) {
	if old := r.trees[s.ID]; old != nil {
		old.forget()
	}
	t := &tree{Spec: s, watches: r.watches, ask: r.ask, unsettled: map[*file]struct{}{}}
	r.trees[s.ID] = t
	r.check(t)
	if t.root == nil {
		r.publish(t)
	}
}

// check sees where the path of a tree leads to, and looks at all in it if that is new.
func (r *Resolver) check(t *tree) {
	if t.check() {
		r.report(Update{ID: t.ID, Found: true, Looking: true})
		t.root.scan(false)
	}
}

// run is the goroutine. After each piece of work that changes have made necessary it rests.
func (r *Resolver) run() {
	defer r.ticker.Stop()
	look := time.NewTimer(time.Hour)
	look.Stop()
	defer look.Stop()
	waiting := false
	var rested time.Time
	for {
		var work func()
		select {
		case <-r.quit:
			return
		case f := <-r.commands:
			work = f
		case <-r.watches.wake:
			if !waiting {
				waiting = true
				look.Reset(max(quiet, time.Until(rested)))
			}
			continue
		case <-look.C:
			waiting = false
			work = r.changes
		case <-r.mounts.wake:
			work = r.checkAll
		case <-r.ticker.C:
			work = r.tick
		}
		began := time.Now()
		work()
		for _, t := range r.trees {
			if t.changed {
				r.publish(t)
			}
		}
		now := time.Now()
		rested = now.Add(shareOfTime * now.Sub(began))
	}
}

// changes looks at what the kernel has told of.
func (r *Resolver) changes() {
	list, lost := r.watches.take()
	if lost {
		r.sweep(false)
		return
	}
	for c := range list {
		for _, d := range append([]*folder(nil), r.watches.users[c.watch]...) {
			if d.watch == 0 {
				continue // given up meanwhile
			}
			if c.name == "" {
				r.check(d.tree)
			} else if sub := d.look(c.name, true); sub != nil {
				sub.scan(false)
			}
		}
	}
}

func (r *Resolver) checkAll() {
	for _, t := range r.trees {
		r.check(t)
	}
}

// tick does what has to be done from time to time.
func (r *Resolver) tick() {
	r.checkAll()
	for _, t := range r.trees {
		for f := range t.unsettled {
			f.in.look(f.name, true)
		}
	}
	if began := time.Now(); began.After(r.nextSweep) {
		r.sweeps++
		r.sweep(r.sweeps%forceEvery == 0)
		now := time.Now()
		r.nextSweep = now.Add(max(sweepEvery, sweepShare*now.Sub(began)))
	}
}

// sweep looks at all files.
func (r *Resolver) sweep(force bool) {
	r.checkAll()
	for _, t := range r.trees {
		if t.root != nil {
			t.root.scan(force)
		}
	}
}

// publish reports a tree.
func (r *Resolver) publish(t *tree) {
	t.changed = false
	u := Update{ID: t.ID, Found: t.root != nil, Files: t.files}
	switch {
	case t.problem != nil:
		u.Problem = t.problem.Error()
	case t.unwatched > 0:
		u.Problem = fmt.Sprintf("%d folders are looked at once a minute only (raise "+
			"fs.inotify.max_user_watches)", t.unwatched)
	}
	if u.Ranges = t.ranges(); len(u.Ranges) > rules.MaxRanges {
		u.Problem = fmt.Sprintf("it has %d extents, of which only the first %d count", len(u.Ranges),
			rules.MaxRanges)
		u.Ranges = u.Ranges[:rules.MaxRanges]
	}
	r.report(u)
}
