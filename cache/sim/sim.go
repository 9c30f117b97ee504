package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"ubcache/attrs"
	"ubcache/cache"
)

// Config is what a seed decides before the history begins.
type Config struct {
	Seed        uint64
	Lanes       int
	Depth       int
	Steps       int
	Checksums   bool
	ZeroCopy    bool // requests without visible data
	Devices     int
	DeviceBytes int64
	LBS         int
	Discards    bool
	Zeroes      bool
	Crashes     int // per 10,000 steps
	Trim        bool
	ModeChanges bool
	Flushes     int  // per 100 requests
	Hot         int  // per cent of requests that go to a small part of the device
	Large       bool // many requests fill the pending ring before it is committed
	Attributes  bool // requests carry attributes
	Vanish      int  // how often the SSD vanishes or comes back, per 10,000 steps
	LossHold    time.Duration
}

// NewConfig draws a configuration.
func NewConfig(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := Config{
		Seed: seed, Lanes: 1 + rng.IntN(3), Depth: 1 + rng.IntN(12), Steps: 3000,
		Checksums: rng.IntN(3) > 0, Devices: 1 + rng.IntN(2),
		DeviceBytes: int64(1+rng.IntN(4))<<20 + int64(rng.IntN(8))*4096,
		LBS:         512, Discards: rng.IntN(2) == 0, Zeroes: rng.IntN(2) == 0,
		Crashes: rng.IntN(20), Trim: rng.IntN(4) == 0, ModeChanges: rng.IntN(3) == 0,
		Flushes: rng.IntN(20), Hot: rng.IntN(100),
	}
	if !c.Checksums {
		c.ZeroCopy = rng.IntN(2) == 0
	}
	c.Large = rng.IntN(5) == 0
	c.Attributes = seed%2 == 1
	if rng.IntN(3) == 0 {
		c.LBS = 4096
	} else {
		c.DeviceBytes += int64(rng.IntN(8)) * 512
	}
	return c
}

// Result counts what happened in a history.
type Result struct {
	Requests, PowerCuts, Kills, Warm int
	Hits, Evicted, Checkpoints       int64
	WrittenBack, Moved               int64
	Pins, Evictions                  int // that were handled
	Refused, Mismatched, Late        int // requests that failed for their attributes
	// How often the SSD vanished, came back, and came back having missed nothing; requests that failed for
	// lack of it, and for what it had lost.
	Vanished, Returned, ReturnedWarm int
	FailedLost, FailedBad            int
}

const ssdBytes = 5 << 20

// Sim is one history.
type Sim struct {
	cfg    Config
	rng    *rand.Rand
	ssd    *Disk
	backs  []*Disk
	models []*model
	ids    []cache.BackingID
	ring   []byte
	c      *cache.Cache
	lanes  []*lane // the last one does the background work
	ops    []*flyingOp
	reqs   map[uint32]*request
	tag    uint32
	now    int64
	res    Result
	wishes wishes
	van    vanishing
	drop   []cache.UUID
	err    error
	// Trace, if set, is told every event.
	Trace func(format string, args ...any)
}

type flyingOp struct {
	l    *lane
	op   *cache.Op
	mark int // of a flush
}

// lane is a cache.Driver.
type lane struct {
	s     *Sim
	l     *cache.Lane
	woken bool
}

// request is a request in flight.
type request struct {
	cache.Request
	attrs   attrs.Set
	results attrs.Results
	asked   asked
	dev     int
	data    []byte
	first   int // sectors
	n       int
	v       version
	issued  uint64
	read    *modelRead
	flush   *modelFlush
	written bool
	wished  uint64 // wishes.clock of its issue
	ends    bool   // it may end pins
}

var errCrash = errors.New("sim: crash")

// New prepares a history: a formatted cache with its backing devices attached.
func New(cfg Config) (*Sim, error) {
	s := &Sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 2)), ssd: NewDisk(ssdBytes),
		van:  vanishing{markers: map[cache.UUID]cache.Missed{}},
		ring: make([]byte, cache.PendingBytes), reqs: map[uint32]*request{}, now: 1,
		wishes: wishes{blocks: map[wishBlock]*wishState{}},
	}
	_, err := cache.Format(s.ssd, cache.FormatOptions{
		BucketBytes: 64 << 10, NoChecksums: !cfg.Checksums, UUID: cache.UUID{1, byte(cfg.Seed)},
		Now: time.Unix(1, 0),
	})
	if err != nil {
		return nil, err
	}
	for range cfg.Devices {
		s.backs = append(s.backs, NewDisk(cfg.DeviceBytes))
		s.models = append(s.models, newModel(cfg.DeviceBytes/int64(cfg.LBS)*int64(cfg.LBS)))
		s.van.bad = append(s.van.bad, map[int]bool{})
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	for i := range cfg.Devices {
		t := cache.DefaultTunables()
		t.SequentialCutoff = int64(s.rng.IntN(3)) * 64 << 10
		t.DirtyTarget, t.DirtyMax = s.rng.IntN(30), 30+s.rng.IntN(60)
		t.WritebackDelay = time.Duration(s.rng.IntN(5)) * time.Second
		t.PinQuota = int(cfg.Seed % 51)
		t.Loss = s.loss()
		b, err := s.c.Attach(cache.AttachOptions{
			Name: fmt.Sprint("d", i), Mode: cache.Mode(s.rng.IntN(5)), LBS: cfg.LBS,
			Identity: cache.Identity{Size: cfg.DeviceBytes}, Tunables: t,
			UUID: cache.UUID{2, byte(i)},
		})
		if err != nil {
			return nil, err
		}
		b.SetAbilities(cfg.Discards, cfg.Zeroes)
		s.ids = append(s.ids, b.ID())
	}
	return s, nil
}

func (s *Sim) trace(format string, args ...any) {
	if s.Trace != nil {
		s.Trace(format, args...)
	}
}

// open starts the cache as a new process would.
func (s *Sim) open() error {
	c, err := cache.Open(s.ssd, cache.Options{
		Pending: s.ring, Discard: s.cfg.Trim, Missed: s.mark, Drop: s.drop,
	})
	if err != nil {
		return err
	}
	s.c, s.lanes = c, nil
	for range s.cfg.Lanes + 1 {
		l := &lane{s: s}
		l.l = c.NewLane(l)
		s.lanes = append(s.lanes, l)
	}
	c.StartBackground(s.bg().l)
	for _, id := range s.ids {
		b, err := c.Backing(id)
		if err != nil {
			return err
		}
		b.SetAbilities(s.cfg.Discards, s.cfg.Zeroes)
	}
	return s.setQuotas()
}

func (s *Sim) bg() *lane { return s.lanes[len(s.lanes)-1] }

// Submit implements cache.Driver.
func (l *lane) Submit(op *cache.Op) {
	f := &flyingOp{l: l, op: op}
	if op.Kind == cache.OpFlush {
		f.mark = l.s.disk(op.Dev).mark()
	}
	l.s.ops = append(l.s.ops, f)
}

// Finish implements cache.Driver.
func (l *lane) Finish(r *cache.Request) { l.s.finish(l.s.reqs[r.Tag]) }

// CopyOut implements cache.Driver.
func (l *lane) CopyOut(r *cache.Request, off int, dst []byte) error {
	copy(dst, l.s.reqs[r.Tag].data[off:])
	return nil
}

// CopyIn implements cache.Driver.
func (l *lane) CopyIn(r *cache.Request, off int, src []byte) error {
	copy(l.s.reqs[r.Tag].data[off:], src)
	return nil
}

// Wake implements cache.Driver.
func (l *lane) Wake() { l.woken = true }

// Now implements cache.Driver.
func (l *lane) Now() int64 { return l.s.now }

// Clock implements cache.Driver.
func (l *lane) Clock() int64 { return l.s.now }

func (s *Sim) disk(id cache.BackingID) *Disk {
	if id == cache.SSD {
		return s.ssd
	}
	return s.backs[slices.Index(s.ids, id)]
}

// Run plays the history and the final checks.
func (s *Sim) Run() (Result, error) {
	for i := 0; i < s.cfg.Steps && s.err == nil && !s.van.over; i++ {
		s.step(true)
		if i%100 == 0 {
			s.checkWishes("while running")
		}
	}
	switch {
	case s.err != nil:
	case s.van.over:
		s.c.Abandon()
	default:
		s.err = s.epilogue()
	}
	return s.res, s.err
}

// step does one thing.
func (s *Sim) step(requests bool) {
	s.now += int64(s.rng.IntN(2_000_000))
	if requests && s.rng.IntN(10_000) < s.cfg.Crashes {
		s.crash()
		return
	}
	if requests && s.cfg.Vanish > 0 && s.rng.IntN(10_000) < s.cfg.Vanish {
		s.vanishStep()
		return
	}
	switch x := s.rng.IntN(20); {
	case requests && x < 7:
		if len(s.reqs) < s.cfg.Depth {
			s.issue()
		}
	case x < 16:
		if len(s.ops) > 0 {
			s.complete(s.rng.IntN(len(s.ops)))
		}
	case x < 18:
		l := s.lanes[s.rng.IntN(len(s.lanes))]
		if l.woken {
			s.run(l)
		}
	case x < 19:
		s.finishMarker()
		s.now += int64(s.rng.IntN(100)) * int64(time.Millisecond)
		s.bg().l.Tick()
	case requests && s.cfg.ModeChanges && s.ssd.gone == nil && s.rng.IntN(20) == 0:
		id := s.ids[s.rng.IntN(len(s.ids))]
		if err := s.c.SetMode(id, cache.Mode(s.rng.IntN(5))); err != nil {
			s.err = err
		}
	}
}

func (s *Sim) run(l *lane) {
	l.woken = false
	l.l.Run()
	if l == s.bg() {
		l.l.Tick()
	}
}

// complete ends an operation, whose effect it has only now.
func (s *Sim) complete(i int) {
	f := s.ops[i]
	s.ops[i] = s.ops[len(s.ops)-1]
	s.ops = s.ops[:len(s.ops)-1]
	if s.vanished(f) {
		return
	}
	s.effect(f)
	f.l.l.Complete(f.op, nil)
}

func (s *Sim) mem(op *cache.Op) []byte {
	if op.Mem != nil {
		return op.Mem[:op.Len]
	}
	// The kernel lets the pages of a request be used in the request's direction only.
	if (op.Kind == cache.OpRead) != (op.Req.Op == cache.ReqRead) {
		panic(fmt.Sprintf("sim: %s of the pages of a %s", op.Kind, op.Req.Op))
	}
	return s.reqs[op.Req.Tag].data[op.ReqOff:][:op.Len]
}

func (s *Sim) effect(f *flyingOp) {
	op, d := f.op, s.disk(f.op.Dev)
	s.trace("  op %s dev=%d off=%d len=%d fua=%v", op.Kind, op.Dev, op.Off, op.Len, op.FUA)
	switch op.Kind {
	case cache.OpRead:
		d.now.read(s.mem(op), op.Off)
	case cache.OpWrite:
		if op.FUA {
			d.writeFUA(s.mem(op), op.Off)
		} else {
			d.write(s.mem(op), op.Off)
		}
	case cache.OpFlush:
		d.flush(f.mark)
	case cache.OpDiscard, cache.OpZero:
		d.write(make([]byte, op.Len), op.Off)
	}
}

// issue sends a request.
func (s *Sim) issue() {
	dev := s.rng.IntN(len(s.ids))
	m := s.models[dev]
	s.tag++
	r := &request{dev: dev}
	r.Tag, r.Backing = s.tag, s.ids[dev]
	if s.rng.IntN(100) < s.cfg.Flushes {
		r.Op = cache.ReqFlush
		if s.ask(r); !r.asked.fails() {
			r.flush = m.flush()
		}
	} else {
		s.shape(r)
		switch x := s.rng.IntN(20); {
		case x < 9:
			r.Op = cache.ReqRead
		case x < 18:
			r.Op = cache.ReqWrite
			r.FUA = s.rng.IntN(10) == 0
		case x < 19:
			r.Op = cache.ReqDiscard
		default:
			r.Op = cache.ReqWriteZeroes
		}
		s.ask(r)
		switch {
		case r.Op == cache.ReqRead:
			r.read = m.read(r.first, r.n)
		case r.asked.fails():
			s.fillData(r, neverLegal)
		default:
			r.v, r.written = m.write(r.first, r.n, r.Op != cache.ReqWrite), true
			r.issued = m.clock
			s.fillData(r, r.v.stamp)
		}
	}
	s.res.Requests++
	s.submit(r)
}

// fillData makes the data of a write of that stamp.
func (s *Sim) fillData(r *request, stamp uint64) {
	for i := 0; i < r.n && r.Op == cache.ReqWrite; i++ {
		fillSector(r.data[i*sectorSize:], r.first+i, stamp)
	}
}

// shape chooses the place and length of a request.
func (s *Sim) shape(r *request) {
	m := s.models[r.dev]
	unit := s.cfg.LBS / sectorSize
	total := len(m.sectors) / unit
	span := total
	if s.rng.IntN(100) < s.cfg.Hot {
		span = max(1, total/8)
	}
	n := 1 + s.rng.IntN(8)
	if s.rng.IntN(8) == 0 {
		n = 1 + s.rng.IntN(128)
	}
	if s.cfg.Large {
		n = 1 + s.rng.IntN(1024/unit)
	}
	first := s.rng.IntN(span)
	if s.rng.IntN(2) == 0 { // aligned to blocks
		first, n = first/8*8, (n+7)/8*8
	}
	n = min(n, total-first)
	r.first, r.n = first*unit, n*unit
	r.Off, r.Len = int64(r.first)*sectorSize, int64(r.n)*sectorSize
	r.data = make([]byte, r.Len)
}

func (s *Sim) submit(r *request) {
	if !s.cfg.ZeroCopy {
		r.Data = r.data
	}
	s.reqs[r.Tag] = r
	if s.cfg.Attributes {
		s.attributes(r)
	}
	l := s.lanes[s.rng.IntN(s.cfg.Lanes)]
	s.trace("%d submit %s dev=%d sectors=%d+%d fua=%v version=%d %v", r.Tag, r.Op, r.dev, r.first, r.n,
		r.FUA, r.v.number, &r.attrs)
	l.l.Submit(&r.Request)
}

// finish compares the outcome of a request with the model.
func (s *Sim) finish(r *request) {
	delete(s.reqs, r.Tag)
	s.trace("%d finish %v", r.Tag, r.Err)
	s.answered(r)
	m := s.models[r.dev]
	switch {
	case s.cfg.Attributes && s.finishAttributes(r):
	case r.Err != nil && s.excused(r):
	case r.Err != nil:
		s.fail(fmt.Errorf("%s of sectors %d+%d failed: %w", r.Op, r.first, r.n, r.Err))
	case r.Op == cache.ReqRead:
		if err := m.readDone(r.read, r.data); err != nil {
			s.fail(fmt.Errorf("device %d: %w", r.dev, err))
		}
	case r.Op == cache.ReqFlush:
		m.flushDone(r.flush)
	default:
		m.writeDone(r.first, r.n, r.v, r.issued, r.Op == cache.ReqDiscard, r.FUA)
	}
}

func (s *Sim) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}
