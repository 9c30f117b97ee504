package daemon

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ubcache/cache"
	"ubcache/internal/blockdev"
	"ubcache/internal/report"
)

// A guard finds out whether a backing device is there, and brings it back when it was gone.
//
// The engine tells it of operations that failed as they do on a device that is gone (suspect); a probe
// of the device then decides. A device that is gone is looked for once a second, under the name that it
// had and under all others, and if it is the one that it was its new file replaces the old one in all
// rings (return.go). What blocks on a device that does not answer is a worker of the guard, of which
// there is one at a time.
type guard struct {
	in *Instance
	s  *served
	id cache.BackingID

	nudge chan struct{} // the engine's suspicion
	asks  chan ask      // of operators
	quit  chan struct{}
	done  chan struct{}
	// giveUp: nobody is to wait for the device any more, since it is taken away.
	giveUp atomic.Bool

	// What follows belongs to run.
	work     chan finding // of the worker; nil if there is none
	since    time.Time    // when the worker began
	volatile bool         // the device may lose what it was not flushed for
	gone     time.Time    // when the device was found to be gone; zero if it is there
	asked    *ask         // that the worker is for
	found    *finding     // a device to be brought back as soon as nobody is in the way

	// census is what the worker's last search knew of the machine's devices.
	census struct {
		text              string
		changed, searched time.Time
	}

	mu struct {
		sync.Mutex
		gone    time.Time // as above
		forgets bool      // the device that is gone has a volatile cache
		why     string    // the device is taken for gone
		refused string    // what is there instead
	}
}

// finding is what a worker has found.
type finding struct {
	probe   uint64 // number of a probe of the device; 0: a search
	dev     *blockdev.Device
	inPlace bool // dev is what the rings have already
	err     error
}

// ask is an operator's request to bring the device back, from path if that is not empty.
type ask struct {
	path  string
	reply chan error // has room for the answer
}

const (
	// lookAgain is how often a device that is gone is looked for.
	lookAgain = time.Second
	// probeTime is how long a device may take to answer before it is taken for gone.
	probeTime = 10 * time.Second
	// idleLook is how often the note on a device's write cache is read.
	idleLook = 5 * time.Second
	// swapAgain is how soon a device that is back is tried again when somebody is in the way.
	swapAgain = 50 * time.Millisecond
)

// startGuard begins to watch the device of s. It comes before any lane can use the device.
func (in *Instance) startGuard(s *served) {
	g := &guard{
		in: in, s: s, id: s.b.ID(), nudge: make(chan struct{}, 1), asks: make(chan ask),
		quit: make(chan struct{}), done: make(chan struct{}), volatile: s.dev.Volatile(),
	}
	in.mu.Lock()
	s.guard = g
	in.mu.Unlock()
	in.guards[g.id].Store(g)
	go g.run()
}

// stopGuard ends a guard and waits for it, though not for a worker that hangs on the device.
func (in *Instance) stopGuard(s *served) {
	if s.guard == nil {
		return
	}
	in.guards[s.guard.id].CompareAndSwap(s.guard, nil)
	close(s.guard.quit)
	<-s.guard.done
	in.mu.Lock()
	s.guard = nil
	in.mu.Unlock()
}

// loseAbsent says of the devices that are gone what is said of those that come back: the next start may find them there, and knows
// nothing of their absence.
func (in *Instance) loseAbsent() {
	for _, s := range in.list() {
		g := in.guards[s.b.ID()].Load()
		if g == nil {
			continue
		}
		g.mu.Lock()
		forgets := !g.mu.gone.IsZero() && g.mu.forgets
		g.mu.Unlock()
		if forgets {
			in.cache.Lost(g.id)
		}
	}
}

func (in *Instance) stopGuards() {
	for _, s := range in.list() {
		in.stopGuard(s)
	}
}

// suspect is cache.Options.Suspect.
func (in *Instance) suspect(id cache.BackingID) {
	if g := in.guards[id].Load(); g != nil {
		select {
		case g.nudge <- struct{}{}:
		default: // it is about to look
		}
	}
}

func (g *guard) run() {
	defer close(g.done)
	defer func() {
		if g.found != nil {
			g.found.drop()
		}
		if g.asked != nil {
			g.asked.reply <- report.Fail("", "cache "+g.in.opts.Name+" is stopping", "")
		}
	}()
	timer := time.NewTimer(idleLook)
	defer timer.Stop()
	for {
		nudge, asks := g.nudge, g.asks
		if g.work != nil || g.found != nil {
			nudge, asks = nil, nil
		}
		select {
		case <-g.quit:
			return
		case <-g.in.life.Done():
			return
		case f := <-g.work:
			g.work = nil
			g.learn(f)
		case <-nudge:
			if g.gone.IsZero() {
				g.probe()
			}
		case a := <-asks:
			g.search(&a)
		case <-timer.C:
		}
		timer.Reset(g.look())
	}
}

// look does what is due and returns when to look again.
func (g *guard) look() time.Duration {
	if !g.in.enter() {
		return idleLook // the end is near
	}
	defer g.in.using.RUnlock()
	if g.gone.IsZero() {
		switch {
		case g.work == nil:
			g.volatile = g.s.dev.Volatile()
			return idleLook
		case time.Since(g.since) >= probeTime:
			g.leave(fmt.Errorf("no answer for %v", probeTime))
		default:
			return time.Until(g.since.Add(probeTime))
		}
	}
	if g.found != nil {
		g.bringBack()
	}
	wait := lookAgain
	switch hold := g.s.b.Hold(); {
	case g.gone.IsZero():
		return idleLook
	case g.giveUp.Load() || time.Since(g.gone) >= hold:
		if g.s.b.Presence() == cache.Holding {
			g.in.log.Error("backing device is still gone: I/O that needs it fails from now on", "name",
				g.s.name, "after", time.Since(g.gone).Round(time.Second))
			g.in.cache.SetPresence(g.id, cache.Failing)
		}
	default:
		if g.s.b.Presence() == cache.Failing { // the setting has changed
			g.in.cache.SetPresence(g.id, cache.Holding)
		}
		wait = min(wait, hold-time.Since(g.gone))
	}
	switch {
	case g.found != nil:
		return swapAgain
	case g.work == nil && time.Since(g.since) >= lookAgain:
		g.search(nil)
	case g.work == nil:
		wait = min(wait, time.Until(g.since.Add(lookAgain)))
	}
	return max(wait, time.Millisecond)
}

// start gives the worker something to do.
func (g *guard) start(f func() finding) {
	g.since = time.Now()
	work := make(chan finding, 1)
	g.work = work
	go func() {
		r := f()
		select {
		case <-g.done: // nobody takes it any more
			r.drop()
		case work <- r:
		}
	}()
}

// drop closes a device that was found and is not used.
func (f *finding) drop() {
	if f.dev != nil && !f.inPlace {
		_ = f.dev.Close()
	}
}

func (g *guard) probe() {
	if !g.in.enter() {
		return
	}
	number := g.in.cache.BeginProbe(g.id)
	g.in.using.RUnlock()
	dev := g.s.dev
	g.start(func() finding { return finding{probe: number, err: g.in.opts.alive(dev)} })
}

// search looks for the device.
func (g *guard) search(a *ask) {
	if g.gone.IsZero() {
		if a != nil {
			a.reply <- report.Refuse("", g.s.dev.Info.Path+" is there",
				"detach and attach replace a device by another")
		}
		return
	}
	path := ""
	if g.asked = a; a != nil {
		path = a.path
	}
	g.start(func() finding { return g.find(path) })
}

// learn takes what the worker has found.
func (g *guard) learn(f finding) {
	if !g.in.enter() {
		f.drop()
		return
	}
	defer g.in.using.RUnlock()
	switch {
	case f.probe != 0 && f.err == nil:
		g.volatile = g.s.dev.Volatile()
		g.in.cache.Alive(g.id, f.probe)
	case f.probe != 0:
		if g.gone.IsZero() {
			g.leave(f.err)
		}
	case f.err != nil:
		g.refuse(f.err)
		g.answer(f.err)
	default:
		g.found = &f
		g.bringBack()
	}
}

func (g *guard) answer(err error) {
	if g.asked != nil {
		g.asked.reply <- err
		g.asked = nil
	}
}

// leave makes it known that the device is gone.
func (g *guard) leave(why error) {
	g.gone = time.Now()
	hold := g.s.b.Hold()
	p, then := cache.Holding, "it waits for the device for "+hold.String()
	switch {
	case hold == cache.HoldForever:
		then = "it waits for the device"
	case hold == 0 || g.giveUp.Load():
		p, then = cache.Failing, "it fails"
	}
	g.mu.Lock()
	g.mu.gone, g.mu.forgets, g.mu.why, g.mu.refused = g.gone, g.volatile, why.Error(), ""
	g.mu.Unlock()
	g.in.log.Error("backing device is gone; what is on the SSD is served, dirty data is kept", "name",
		g.s.name, "device", g.s.dev.Info.Path, "error", why, "other I/O", then)
	g.in.cache.SetPresence(g.id, p)
}

// refuse notes why the device that was found is not the right one, or why none was; once.
func (g *guard) refuse(err error) {
	if errors.Is(err, errNothingNew) {
		return
	}
	text := ""
	if report.CodeOf(err) == report.Refused {
		text = err.Error()
	}
	g.mu.Lock()
	news := text != "" && text != g.mu.refused
	g.mu.refused = text
	g.mu.Unlock()
	if news {
		g.in.log.Error("a device that may be the backing device is refused", "name", g.s.name,
			"error", err)
	}
}

// problem says what is wrong with the device; empty if nothing is.
func (g *guard) problem() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.gone.IsZero() {
		return ""
	}
	gone := time.Since(g.mu.gone)
	text := fmt.Sprintf("gone for %v (%s)", gone.Round(time.Second), g.mu.why)
	if g.mu.refused != "" {
		text = fmt.Sprintf("gone for %v; %s", gone.Round(time.Second), g.mu.refused)
	}
	switch hold := g.s.b.Hold(); {
	case g.s.b.Presence() == cache.Failing:
		return text + ": I/O that needs it fails"
	case hold == cache.HoldForever:
		return text + ": I/O that needs it waits"
	default:
		return fmt.Sprintf("%s: I/O that needs it waits for %v more", text,
			max(0, hold-gone).Round(time.Second))
	}
}

// renounce makes what waits for the device fail, since it is taken away.
func (in *Instance) renounce(s *served, on bool) {
	g := s.guard
	if g == nil {
		return
	}
	g.giveUp.Store(on)
	if on && s.b.Presence() == cache.Holding {
		in.cache.SetPresence(g.id, cache.Failing)
	}
}

// errBusySwap: I/O on the old file of the device is still under way, or somebody changes what is served.
var errBusySwap = errors.New("I/O on the device that is gone is still under way")
