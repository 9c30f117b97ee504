package sim

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"ubcache/attrs"
	"ubcache/cache"
)

// The SSD's size, also with big buckets.
const (
	ssdBytes    = 4 << 20
	bigSSDBytes = 11 << 20
)

// Sim is one history.
type Sim struct {
	cfg    Config
	pcg    *rand.PCG
	rng    *rand.Rand // anew for each step, so that steps can be left out
	geo    cache.Geometry
	ssd    *Disk
	backs  []*Disk
	models []*model
	ids    []cache.BackingID
	ring   []byte
	c      *cache.Cache
	lanes  []*lane // the last one does the background work
	ops    []*flyingOp
	opID   uint64
	armed  []armed
	strike func(f *flyingOp) (Fault, bool) // replaces armed, if set
	slow   bool                            // the index is loaded slowly
	// slowTick counts how often it was put off in scenarios.
	slowTick int
	lossy    uint64 // the devices that have failed a flush since the start, or before it, as the superblock says
	shaky    uint64 // the journal has failed; operations up to that one may know
	// Of scenarios: operations complete in order, and it crashes at one of them.
	script   bool
	held     cache.OpKind // of backing devices, none of that kind ends; but reads do
	trouble  trouble
	count    int
	crashAt  int
	crashHow Crash
	reqs     map[uint32]*request
	buffers  buffers
	swapped  [][]byte // memory of reads that was replaced, until nothing is under way on it any more
	tag      uint32
	now      int64
	res      Result
	wishes   wishes
	van      vanishing
	warm     warmth
	retired  retirement
	scrubs   scrubbing
	leaves   []leaving
	// Of each device: what it is attached with, and its UUID; former are the devices that had a number before.
	attachments []cache.AttachOptions
	uuids       []cache.UUID
	former      map[cache.BackingID]int
	absences    []absence // of backing devices
	ending      bool      // an SSD that is away comes back at once
	orders      orders
	err         error
	// Keep has the steps that are played; all if it is nil.
	Keep []bool
	// Trace, if set, is told every event.
	Trace func(format string, args ...any)
}

type flyingOp struct {
	l    *lane
	op   *cache.Op
	mark int // of a flush
	id   uint64
	hung error // its device has gone meanwhile
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
	target  []byte // what Target is a part of
	first   int    // sectors
	n       int
	v       version
	issued  uint64
	read    *modelRead
	flush   *modelFlush
	written bool
	wished  uint64 // wishes.clock of its issue
	ends    bool   // it may end pins
	excuse  excuse
	hinted  bool // of a scenario, with attributes
	needing bool // what only the SSD has, while it was lost
	bare    bool // it came while the SSD was lost
	without bool // for some of its time the cache was without its SSD
	hit     bool // all of it was on the SSD when it came
	bad     bool // the SSD had lost a block of it when it came
	made    bool // the backing device may have been changed for it
	doubted bool // its effect may be lost when it is acknowledged
}

// New prepares a history: a formatted cache with its backing devices attached.
func New(cfg Config) (*Sim, error) {
	size, bucketBytes := int64(ssdBytes), int64(64<<10)
	if cfg.BigBuckets {
		size, bucketBytes = bigSSDBytes, 256<<10
	}
	s := &Sim{
		cfg: cfg, pcg: rand.NewPCG(cfg.Seed, 2), ssd: NewDisk(size),
		ring: ringMemory(), reqs: map[uint32]*request{}, now: 1,
		leaves: make([]leaving, cfg.Devices), former: map[cache.BackingID]int{},
		wishes: wishes{blocks: map[wishBlock]*wishState{}},
		van:    vanishing{markers: map[cache.UUID]cache.Missed{}},
	}
	s.rng = rand.New(s.pcg)
	s.warm = warmth{durable: map[warmBlock]int64{}, pages: map[uint64][]byte{}}
	sb, err := cache.Format(s.ssd, cache.FormatOptions{
		BucketBytes: bucketBytes, NoChecksums: !cfg.Checksums, UUID: cache.UUID{1, byte(cfg.Seed)},
		Now: time.Unix(1, 0),
	})
	if err != nil {
		return nil, err
	}
	s.geo = sb.Geometry
	for range cfg.Devices {
		s.backs = append(s.backs, NewDisk(cfg.DeviceBytes))
		s.models = append(s.models, newModel(cfg.DeviceBytes/int64(cfg.LBS)*int64(cfg.LBS)))
		s.van.bad = append(s.van.bad, map[int]bool{})
		s.absences = append(s.absences, absence{})
	}
	s.slow = cfg.SlowLoad
	if err := s.open(); err != nil {
		return nil, err
	}
	for i := range cfg.Devices {
		t := cache.DefaultTunables()
		t.SequentialCutoff = int64(s.rng.IntN(3)) * 64 << 10
		t.DirtyTarget, t.DirtyMax = s.rng.IntN(30), 30+s.rng.IntN(60)
		t.WritebackDelay = time.Duration(s.rng.IntN(5)) * time.Second
		t.PinQuota = int(cfg.Seed % 51)
		if cfg.Pinning {
			t.PinQuota = 50
		}
		t.Loss = s.loss()
		mode := s.orderTunables(&t, s.mode(), s.models[i])
		o := cache.AttachOptions{
			Name: fmt.Sprint("d", i), Mode: mode, LBS: cfg.LBS,
			Identity: cache.Identity{Size: cfg.DeviceBytes}, Tunables: t,
			UUID: cache.UUID{2, byte(i)},
		}
		s.attachments, s.uuids = append(s.attachments, o), append(s.uuids, o.UUID)
		b, err := s.c.Attach(o)
		if err != nil {
			return nil, err
		}
		b.SetAbilities(cfg.Discards, cfg.Zeroes)
		s.ids = append(s.ids, b.ID())
	}
	return s, nil
}

// mode draws a mode.
func (s *Sim) mode() cache.Mode {
	if s.cfg.Through {
		return []cache.Mode{cache.Writethrough, cache.Writearound}[s.rng.IntN(2)]
	}
	return cache.Mode(s.rng.IntN(5))
}

var rings sync.Pool

func ringMemory() []byte {
	if p, _ := rings.Get().(*[]byte); p != nil {
		return *p
	}
	return make([]byte, cache.PendingBytes)
}

// Close gives the memory of a history to others.
func (s *Sim) Close() {
	for _, d := range append(s.backs, s.ssd) {
		d.recycle()
	}
	clear(s.ring[:pageBytes])
	rings.Put(&s.ring)
}

func (s *Sim) trace(format string, args ...any) {
	if s.Trace != nil {
		s.Trace(format, args...)
	}
}

// options are those of every start. The index is loaded page by page, while requests come.
func (s *Sim) options() cache.Options {
	o := cache.Options{
		Pending: s.ring, Discard: s.cfg.Trim, Missed: s.mark, Drop: s.van.drop, Health: s.healthTurned,
		StallLimit: s.cfg.StallLimit, LossLimit: s.cfg.LossLimit,
		Load: cache.LoadOptions{Blocks: 1, Pages: 1, Regions: max(s.cfg.LoadRegions, 1), NoSamples: true},
	}
	if s.cfg.Gone > 0 {
		o.Suspect = s.suspect
	}
	return o
}

// open starts the cache as a new process would.
func (s *Sim) open() error {
	c, err := cache.Open(s.ssd, s.options())
	if err != nil {
		return err
	}
	s.c, s.lanes, s.van.health, s.wishes.given = c, nil, cache.HealthOK, 0
	for range s.cfg.Lanes + 1 {
		l := &lane{s: s}
		l.l = c.NewLane(l)
		s.lanes = append(s.lanes, l)
	}
	c.StartBackground(s.bg().l)
	for _, r := range c.Super().Backings {
		if !r.LostWrites {
			s.lossy &^= 1 << r.ID
		}
	}
	if err := s.attached(c); err != nil {
		return err
	}
	s.warmStarts()
	s.retired = retirement{}
	return s.setQuotas()
}

func (s *Sim) bg() *lane { return s.lanes[len(s.lanes)-1] }

// Submit implements cache.Driver.
func (l *lane) Submit(op *cache.Op) {
	l.s.opID++
	f := &flyingOp{l: l, op: op, id: l.s.opID}
	if op.Kind == cache.OpFlush {
		f.mark = l.s.disk(op.Dev).mark0()
	}
	l.s.journalBegins(op)
	l.s.usesRetired(op)
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
	return s.backs[s.device(id)]
}

// Run plays the history and the final checks.
func (s *Sim) Run() (Result, error) {
	crashAt := s.cfg.Steps / 4 * 3 // if there was none before
	for i := 0; i < s.cfg.Steps && s.err == nil && !s.van.over; i++ {
		if s.Keep != nil && !s.Keep[i] {
			continue
		}
		s.pcg.Seed(s.cfg.Seed, 3+uint64(i))
		if i == crashAt && s.res.Crashes == 0 && s.cfg.Crashes > 0 {
			s.crash()
			continue
		}
		s.step(true)
		s.lookAtImages()
		if i%100 == 0 {
			s.checkWishes("while running")
		}
	}
	switch {
	case s.err != nil:
	case s.van.over:
		s.c.Abandon()
	default:
		s.pcg.Seed(s.cfg.Seed, 2)
		s.err = s.end()
	}
	return s.res, s.err
}

// step does one thing.
func (s *Sim) step(requests bool) {
	s.now += int64(s.rng.IntN(2_000_000))
	if requests {
		switch x := s.rng.IntN(10_000); {
		case x < s.cfg.Crashes:
			s.crash()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate:
			s.arm()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate+s.cfg.Vanish:
			s.vanishStep()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate+s.cfg.Vanish+s.cfg.Gone:
			s.goneStep()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate+s.cfg.Vanish+s.cfg.Gone+s.cfg.Restarts:
			s.restartInOrder()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate+s.cfg.Vanish+s.cfg.Gone+s.cfg.Restarts+s.cfg.Detaches:
			s.detachStep()
			return
		case x < s.cfg.Crashes+s.cfg.FaultRate+s.cfg.Vanish+s.cfg.Gone+s.cfg.Restarts+s.cfg.Detaches+s.cfg.StallReads:
			s.stallStep()
			return
		}
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
		s.guard()
		if requests && s.failedFlush() && s.rng.IntN(8) == 0 {
			s.comeBack()
			return
		}
		s.now += int64(s.rng.IntN(100)) * int64(time.Millisecond)
		s.bg().l.Tick()
		s.scrub()
		s.detach()
	case requests && s.cfg.ModeChanges && s.well() && s.rng.IntN(20) == 0:
		id := s.ids[s.rng.IntN(len(s.ids))]
		if id == noID {
			return
		}
		if err := s.c.SetMode(id, s.mode()); err != nil {
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

// loads reports whether an operation loads a part of the index.
func (s *Sim) loads(op *cache.Op) bool {
	return op.Dev == cache.SSD && op.Kind == cache.OpRead && op.Off >= s.geo.SummaryOff[0] && s.isMeta(op)
}

// complete ends an operation, whose effect it has only now.
func (s *Sim) complete(i int) {
	f := s.ops[i]
	if s.disk(f.op.Dev).stalled > s.now || s.slow && s.loads(f.op) && s.rng.IntN(16) != 0 {
		return
	}
	s.ops[i] = s.ops[len(s.ops)-1]
	s.ops = s.ops[:len(s.ops)-1]
	if s.vanished(f) {
		return
	}
	err := s.absent(f)
	if err == nil {
		err = s.outcome(f)
	}
	if err == nil && s.cfg.Targets {
		err = s.meddle(f.op)
	}
	if err == nil && s.cfg.Gone > 0 {
		s.made(f.op)
	}
	f.l.l.Complete(f.op, err)
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
	switch op.Kind {
	case cache.OpRead:
		copy(s.mem(op), d.now[op.Off:])
	case cache.OpWrite:
		if op.FUA {
			d.writeFUA(s.mem(op), op.Off)
		} else {
			d.write(s.mem(op), op.Off)
		}
	case cache.OpFlush:
		if !s.cfg.LyingFlush || op.Dev != cache.SSD {
			d.flush(f.mark)
		}
	case cache.OpDiscard:
		d.discard(op.Off, op.Len)
	case cache.OpZero:
		d.write(zeroSectors(op.Len), op.Off)
	}
}

// issue sends a request.
func (s *Sim) issue() {
	dev := s.rng.IntN(len(s.ids))
	if s.leaves[dev].stage >= closing {
		return
	}
	m := s.models[dev]
	s.tag++
	r := &request{dev: dev}
	r.Tag, r.Backing = s.tag, s.ids[dev]
	if s.rng.IntN(100) < s.cfg.Flushes {
		r.Op = cache.ReqFlush
		if s.ask(r); !r.asked.fails() {
			r.flush, r.issued = m.flush(), m.clock
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
			s.keep(r)
		case r.asked.fails():
			s.fillData(r, neverLegal)
		default:
			r.v, r.written = m.write(r.first, r.n, r.Op != cache.ReqWrite), true
			r.issued = m.clock
			s.fillData(r, r.v.stamp)
		}
	}
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
	if l := s.wishes.latest; s.cfg.Pinning && len(l) > 0 && s.rng.IntN(3) == 0 {
		if at := l[s.rng.IntN(len(l))]; at.dev == r.dev {
			first = min(int(at.block)*blockSectors/unit, total-1)
		}
	}
	if s.rng.IntN(2) == 0 { // aligned to blocks
		first, n = first/8*8, (n+7)/8*8
	}
	n = min(n, total-first)
	r.first, r.n = first*unit, n*unit
	r.Off, r.Len = int64(r.first)*sectorSize, int64(r.n)*sectorSize
	r.data = s.buffer(r.n)
}

func (s *Sim) submit(r *request) {
	if !s.cfg.ZeroCopy {
		r.Data = r.data
	}
	if s.cfg.Targets && r.Op == cache.ReqRead {
		s.target(r)
	}
	s.reqs[r.Tag] = r
	r.without = s.away()
	r.bare = s.van.health == cache.HealthLost
	r.needing = r.bare && s.needs(r)
	s.res.Requests++
	if s.cfg.Attributes {
		s.attributes(r)
	}
	if r.hinted {
		r.Attrs, r.Results = &r.attrs, &r.results
	}
	s.foresee(r)
	l := s.lanes[s.rng.IntN(s.cfg.Lanes)]
	if s.Trace != nil {
		s.trace("%d submit %s dev=%d sectors=%d+%d fua=%v version=%d %v", r.Tag, r.Op, r.dev, r.first, r.n,
			r.FUA, r.v.number, &r.attrs)
	}
	l.l.Submit(&r.Request)
}

// finish compares the outcome of a request with the model.
func (s *Sim) finish(r *request) {
	delete(s.reqs, r.Tag)
	defer s.buffers.give(r)
	s.trace("%d finish %v", r.Tag, r.Err)
	s.placed(r)
	s.answered(r)
	s.flushed(r)
	s.replaced(r)
	m := s.models[r.dev]
	switch {
	case r.Err != nil && s.excused(r):
	case r.Err != nil && !r.ofAttributes():
		s.failed(r)
	case s.cfg.Attributes && s.finishAttributes(r):
	case r.Err != nil:
		s.fail(fmt.Errorf("%s of sectors %d+%d failed: %w", r.Op, r.first, r.n, r.Err))
	case r.Op == cache.ReqRead:
		if err := m.readDone(r.read, r.data); err != nil {
			s.fail(fmt.Errorf("device %d: %w", r.dev, err))
		}
	case r.Op == cache.ReqFlush:
		m.flushDone(r.flush)
	default:
		m.writeDone(r.first, r.n, r.v, r.issued, r.Op == cache.ReqDiscard || r.doubted, r.FUA)
	}
}

func (s *Sim) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}
