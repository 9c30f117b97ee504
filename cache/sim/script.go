package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ubcache/attrs"
	"ubcache/cache"
)

// Scenario is a small history in words: one line, or part of one up to a semicolon, is one step.
//
//	write F N      write N sectors from sector F on and wait for it; write! is with FUA; likewise
//	               read, discard, zero, and flush without numbers
//	begin …        the same without waiting; wait waits for all of them
//	pin, evict F N a read with that hint
//	dev D          the device of the following steps
//	mode M         switch the mode
//	drain on|off   write everything back
//	detach, attach begin to detach, or go back
//	drained        wait until everything is written back
//	ops N          complete N operations
//	pass N         let N milliseconds pass
//	summaries      write here and there until summaries are being written
//	crash C        crash, of the kind with that number, and start again
//	restart        stop in order and start again
//	resume         the same, but without waiting until the index is loaded; loaded waits for that
//	slow on|off    the index is loaded only when there is nothing else to do
//	hold on|off    flushes of backing devices do not end; let ends the oldest one
//	hold writes    nor do writes of them
//	hurt F         the SSD can no longer read sector F, if it has it
//	again F N      write N sectors from sector F on until the first of them is in the slot again in which it is now
//	N times {…}    repeat; {…} may not contain another one
type Scenario struct {
	Name   string
	Script string
	Config func(*Config)
	// Alone is for one that has crashes enough of its own: it is played with different seeds, as often as
	// that says, and not swept.
	Alone int
}

// scripted makes a Sim for a scenario, on which operations complete in order.
func (sc *Scenario) sim(checksums bool, configure func(*Config)) (*Sim, error) {
	cfg := Config{
		Seed: 3, Lanes: 1, Depth: 64, Checksums: checksums, Devices: 1, DeviceBytes: 1 << 20,
		LBS: sectorSize, Discards: true, Zeroes: true,
	}
	if sc.Config != nil {
		sc.Config(&cfg)
	}
	configure(&cfg)
	s, err := New(cfg)
	if err != nil {
		return nil, err
	}
	s.script = true
	for i, id := range s.ids {
		if err := s.c.SetTunables(id, s.tunables(i)); err != nil {
			return nil, err
		}
		if err := s.c.SetMode(id, cache.Writeback); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// tunables are those of device i of a scenario.
func (s *Sim) tunables(i int) cache.Tunables {
	t := cache.DefaultTunables()
	t.SequentialCutoff, t.WritebackDelay = 256<<10, time.Hour
	if s.cfg.Ordered {
		t.Ordered, t.OrderedAge = true, time.Second
		s.orders.tuns[i] = t
	}
	return t
}

// play plays the scenario; the end of it and the final checks are the caller's.
func (sc *Scenario) play(s *Sim) error {
	p := player{s: s}
	for _, line := range strings.Split(sc.Script, "\n") {
		if n, body, ok := strings.Cut(line, " times {"); ok {
			count, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				return err
			}
			for range count {
				if err := p.steps(strings.TrimSuffix(strings.TrimSpace(body), "}")); err != nil {
					return err
				}
			}
			continue
		}
		if err := p.steps(line); err != nil {
			return err
		}
	}
	return p.step("wait")
}

type player struct {
	s   *Sim
	dev int
}

func (p *player) steps(line string) error {
	for _, step := range strings.Split(line, ";") {
		if step = strings.TrimSpace(step); step == "" {
			continue
		}
		if err := p.step(step); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		if p.s.van.over {
			return errOver
		}
	}
	return p.s.err
}

func (p *player) step(step string) error {
	s := p.s
	s.trace("— %s", step)
	word, rest, _ := strings.Cut(step, " ")
	id := s.ids[p.dev]
	switch word {
	case "begin":
		_, err := p.submit(rest)
		return err
	case "wait":
		return s.idle(step, func() bool { return len(s.reqs) == 0 })
	case "dev":
		p.dev, _ = strconv.Atoi(rest)
	case "mode":
		m, err := cache.ParseMode(rest)
		if err == nil { // the superblock can be written, or need not be
			err = s.idle(step, func() bool { return s.well() || s.van.health == cache.HealthLost })
		}
		if err != nil {
			return err
		}
		return s.c.SetMode(id, m)
	case "drain":
		return s.c.SetDrain(id, rest == "on")
	case "detach":
		if err := s.control(step); err != nil {
			return err
		}
		return s.c.BeginDetach(id)
	case "attach":
		if err := s.control(step); err != nil {
			return err
		}
		return s.c.CancelDetach(id)
	case "drained":
		// After a crash nobody remembers that the device was to be drained.
		return s.idle(step, func() bool { return s.c.SetDrain(id, true) != nil || s.drained(id) })
	case "ops":
		n, _ := strconv.Atoi(rest)
		for ; n > 0 && len(s.ops) > 0; n-- {
			s.next()
		}
	case "pass":
		n, _ := strconv.Atoi(rest)
		for until := s.now + int64(n)*int64(time.Millisecond); s.now < until && s.err == nil && !s.van.over; {
			s.next()
		}
	case "summaries":
		for i := range 5000 {
			if s.summaryFlies() || s.err != nil || s.van.over {
				break
			}
			if len(s.reqs) == 0 {
				where := fmt.Sprintf("write! %d 112", i%18*112)
				if _, err := p.submit(where); err != nil {
					return err
				}
			}
			s.next()
		}
	case "crash":
		n, _ := strconv.Atoi(rest)
		s.crashNow(Crash(n))
	case "restart", "resume":
		if err := p.step("wait"); err != nil {
			return err
		}
		if err := s.presentAgain(step); err != nil {
			return err
		}
		return s.restart(word == "restart")
	case "hold":
		s.held = map[string]cache.OpKind{"on": cache.OpFlush, "writes": cache.OpWrite}[rest]
	case "hurt":
		n, _ := strconv.Atoi(rest)
		if at, ok := s.c.Locate(id, int64(n)*sectorSize); ok {
			s.hurt(FaultSSDSector, s.ssd, at.Off+int64(n%blockSectors)*sectorSize, 1)
		}
	case "let":
		i := slices.IndexFunc(s.ops, func(f *flyingOp) bool { return s.holds(f.op) })
		if i < 0 {
			return errors.New("no backing device is being flushed")
		}
		s.conclude(i)
	case "again":
		return p.again(id, rest)
	case "slow":
		s.slow = rest == "on"
	case "loaded":
		s.slow = false
		return s.load()
	default:
		r, err := p.submit(step)
		if err != nil {
			return err
		}
		return s.idle(step, func() bool { return s.reqs[r.Tag] == nil })
	}
	return nil
}

// summaryFlies reports whether the next operation writes a summary.
func (s *Sim) summaryFlies() bool {
	if len(s.ops) == 0 {
		return false
	}
	op := s.ops[0].op
	return op.Dev == cache.SSD && op.Kind == cache.OpWrite && s.isMeta(op) && !op.FUA
}

// drained reports whether the device has nothing to write back that can be.
func (s *Sim) drained(id cache.BackingID) bool {
	b, err := s.c.Backing(id)
	return err != nil || b.Remaining() == 0
}

// again writes until the blocks are where they were.
func (p *player) again(id cache.BackingID, where string) error {
	first, _, _ := strings.Cut(where, " ")
	n, _ := strconv.Atoi(first)
	at := int64(n) * sectorSize
	was, ok := p.s.c.Locate(id, at)
	for range 1000 {
		if err := p.step("write " + where); err != nil || p.s.err != nil {
			return err
		}
		if is, _ := p.s.c.Locate(id, at); ok && is.Off == was.Off {
			return nil
		}
	}
	return errors.New("no slot is used again")
}

// holds reports whether an operation is one that does not end.
func (s *Sim) holds(op *cache.Op) bool {
	return s.held != cache.OpRead && op.Dev != cache.SSD && op.Kind == s.held
}

// blocked reports whether an operation cannot end now.
func (s *Sim) blocked(f *flyingOp) bool { return s.holds(f.op) || s.disk(f.op.Dev).stalled > s.now }

// submit sends the request of a step.
func (p *player) submit(step string) (*request, error) {
	f := strings.Fields(step)
	op, fua := strings.CutSuffix(f[0], "!")
	kinds := map[string]cache.ReqOp{
		"read": cache.ReqRead, "write": cache.ReqWrite, "flush": cache.ReqFlush,
		"discard": cache.ReqDiscard, "zero": cache.ReqWriteZeroes,
		"pin": cache.ReqRead, "evict": cache.ReqRead,
	}
	kind, ok := kinds[op]
	first, n := 0, 0
	if ok && kind != cache.ReqFlush {
		ok = len(f) == 3
		if ok {
			first, _ = strconv.Atoi(f[1])
			n, _ = strconv.Atoi(f[2])
		}
	}
	if !ok {
		return nil, fmt.Errorf("step %q is none", step)
	}
	r := p.s.newRequest(p.dev, kind, first, n)
	r.FUA = fua
	if r.read != nil {
		p.s.keep(r)
	}
	switch op {
	case "pin":
		r.hinted = true
		r.attrs.SetHint(attrs.HintPin)
	case "evict":
		r.hinted = true
		r.attrs.SetHint(attrs.HintEvict)
	}
	p.s.submit(r)
	return r, nil
}

// slowTicks is how often time passes before a part of a slow index is loaded. The SSD must not seem to stall.
const slowTicks = 5

// next does what comes next in a scenario: all that is woken, then the oldest operation; without one,
// time passes.
func (s *Sim) next() {
	again := s.err == nil
	for i := 0; again && i < 100; i++ { // without its SSD a cache looks at what waits at each tick
		again = false
		for _, l := range s.lanes {
			if l.woken {
				s.run(l)
				again = true
			}
		}
	}
	if s.err != nil {
		return
	}
	s.now += int64(time.Millisecond)
	if s.passAway() {
		return
	}
	i := slices.IndexFunc(s.ops, func(f *flyingOp) bool { return !s.blocked(f) && !(s.slow && s.loads(f.op)) })
	if i < 0 && s.slow {
		if s.slowTick++; s.slowTick%slowTicks == 0 {
			i = slices.IndexFunc(s.ops, func(f *flyingOp) bool { return !s.blocked(f) })
		}
	}
	if i < 0 {
		s.now += int64(100 * time.Millisecond)
		s.finishMarker()
		s.guard()
		s.bg().l.Tick()
		return
	}
	if s.crashAt != 0 && s.count+1 == s.crashAt {
		s.crashAt = 0
		s.crashNow(s.crashHow)
		return
	}
	s.count++
	if s.strikeAt(); !s.blocked(s.ops[i]) {
		s.conclude(i)
	}
}

// conclude ends an operation of a scenario.
func (s *Sim) conclude(i int) {
	f := s.ops[i]
	s.ops = slices.Delete(s.ops, i, i+1)
	if s.vanished(f) {
		return
	}
	err := s.absent(f)
	if err == nil {
		err = s.outcome(f)
	}
	if err == nil && s.cfg.Gone > 0 {
		s.made(f.op)
	}
	f.l.l.Complete(f.op, err)
}

// crashNow crashes in that way and starts again.
func (s *Sim) crashNow(how Crash) {
	if s.trouble.do != nil && s.away() {
		s.comeBack() // it cannot start without
		return
	}
	s.countStats()
	s.die(how)
	s.c.Abandon()
	s.lanes = nil
	s.restartAfter(how)
}
