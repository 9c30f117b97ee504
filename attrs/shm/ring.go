package shm

import (
	"runtime/debug"
	"sync/atomic"

	"ubcache/attrs/shm/hostile"
)

const (
	// EntryBytes and CompletionBytes are the sizes of an entry of either ring.
	EntryBytes      = 64
	CompletionBytes = 32
)

// The words of the ring's head page, each on a cache line of its own.
const (
	ringSubmitHead   = 0   // entries that the server has taken
	ringSubmitTail   = 64  // entries that the client has written
	ringCompleteHead = 128 // completions that the client has taken
	ringCompleteTail = 192 // completions that the server has written
	ringServerSleeps = 256 // 1: the server wants to be woken after a submission
	ringClientSleeps = 320 // 1: the client wants to be woken after a completion
)

// Op is what an entry asks for.
type Op uint8

// The operations; the numbers are in the ring.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
	// OpQuery writes the capabilities of the device to the data: see [Capability].
	OpQuery

	opEnd
)

var opNames = [...]string{"read", "write", "flush", "discard", "write zeroes", "query"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "unknown operation"
}

// Known says whether it is one of the operations.
func (o Op) Known() bool { return o < opEnd }

// Flags of an entry.
type Flags uint8

const (
	// FUA: a write is durable when it completes.
	FUA Flags = 1 << iota
	// NoUnmap: write zeroes keeps the space allocated.
	NoUnmap
	// WithAttributes: the slots of the data's pages have the attributes of the request. Of an
	// operation without data Entry.Data names the page.
	WithAttributes

	flagsKnown = FUA | NoUnmap | WithAttributes
)

// Entry is a request in the submission ring.
type Entry struct {
	Op    Op
	Flags Flags
	// Device is the index that the server gave when the device was opened.
	Device uint16
	// Bytes is the length, Off the place on the device, Data that in the data area, in bytes.
	// Discards and write zeroes have no data, so they may be longer than that.
	Bytes uint32
	Off   uint64
	Data  uint64
	// UserData comes back with the completion.
	UserData uint64
}

func (e *Entry) encode(b []byte) {
	clear(b[:EntryBytes])
	b[0], b[1] = byte(e.Op), byte(e.Flags)
	le.PutUint16(b[2:], e.Device)
	le.PutUint32(b[4:], e.Bytes)
	le.PutUint64(b[8:], e.Off)
	le.PutUint64(b[16:], e.Data)
	le.PutUint64(b[24:], e.UserData)
}

// decode fails if there is anything in the entry that has to be 0.
func (e *Entry) decode(b []byte) bool {
	*e = Entry{
		Op: Op(b[0]), Flags: Flags(b[1]), Device: le.Uint16(b[2:]), Bytes: le.Uint32(b[4:]),
		Off: le.Uint64(b[8:]), Data: le.Uint64(b[16:]), UserData: le.Uint64(b[24:]),
	}
	for _, c := range b[32:EntryBytes] {
		if c != 0 {
			return false
		}
	}
	return e.Op.Known() && e.Flags&^flagsKnown == 0
}

// Completion is a result in the completion ring.
type Completion struct {
	UserData uint64
	// Result is the number of bytes moved, or the negative errno.
	Result int64
}

// at is where entry i of the submission ring lies, after it are the completions.
func (m *memory) entry(i uint32) int64 {
	return m.ring + ringHeadBytes + int64(i&uint32(m.entries-1))*EntryBytes
}

func (m *memory) completion(i uint32) int64 {
	return m.ring + ringHeadBytes + int64(m.entries)*EntryBytes +
		int64(i&uint32(m.entries-1))*CompletionBytes
}

// Ring is the client's side of the ring of a region. It is for one goroutine at a time.
type Ring struct {
	r *Region
}

// Ring is the region's ring, which needs Options.Entries.
func (r *Region) Ring() Ring { return Ring{r} }

// Reset empties the ring for another server. Nobody may be serving it.
func (g Ring) Reset() {
	for _, word := range [...]int64{
		ringSubmitHead, ringSubmitTail, ringCompleteHead, ringCompleteTail, ringServerSleeps,
		ringClientSleeps,
	} {
		g.r.store(g.r.ring+word, 0)
	}
}

// Submit writes an entry to the ring; false if the ring is full. The caller has no more than
// Region.Entries requests under way: that many completions have room. wake says whether the server
// has to be woken for it.
func (g Ring) Submit(e *Entry) (ok, wake bool) {
	r := g.r
	tail := r.load(r.ring + ringSubmitTail)
	if tail-r.load(r.ring+ringSubmitHead) >= uint32(r.entries) {
		return false, false
	}
	at := r.entry(tail)
	e.encode(r.mem[at : at+EntryBytes])
	r.store(r.ring+ringSubmitTail, tail+1)
	// The server says that it sleeps before it looks for entries a last time; here it is the other
	// way round, so one of the two sees the other.
	return true, r.load(r.ring+ringServerSleeps) != 0 &&
		atomic.CompareAndSwapUint32(r.word(r.ring+ringServerSleeps), 1, 0)
}

// Next takes a completion; false if there is none.
func (g Ring) Next(c *Completion) bool {
	r := g.r
	head := r.load(r.ring + ringCompleteHead)
	if head == r.load(r.ring+ringCompleteTail) {
		return false
	}
	at := r.completion(head)
	b := r.mem[at : at+CompletionBytes]
	c.UserData, c.Result = le.Uint64(b), int64(le.Uint64(b[8:]))
	r.store(r.ring+ringCompleteHead, head+1)
	return true
}

// Sleep announces that the client is going to wait for the server to wake it. It returns false,
// and announces nothing, if there is a completion already.
func (g Ring) Sleep() bool {
	r := g.r
	r.store(r.ring+ringClientSleeps, 1)
	if r.load(r.ring+ringCompleteHead) != r.load(r.ring+ringCompleteTail) {
		r.store(r.ring+ringClientSleeps, 0)
		return false
	}
	return true
}

// Server is the server's side of the ring of a view, for one thread. What the server has written
// it keeps for itself and never reads back.
type Server struct {
	v *View
	// taken entries, and written completions.
	taken, written uint32
}

// Server is the ring's server side; false if the region has no ring. There is one for a view.
func (v *View) Server() (*Server, bool) { return &Server{v: v}, v.entries > 0 }

// Next takes an entry; some is false if there is none. One that makes no sense is not valid: only its
// UserData counts, and it is to be completed with EINVAL. Next returns ErrBroken if the ring itself
// makes no sense; then there is no going on with this client.
func (s *Server) Next(e *Entry) (some, valid bool, err error) {
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	v := s.v
	n := v.load(v.ring+ringSubmitTail) - s.taken
	if n == 0 {
		return false, false, nil
	}
	if n > uint32(v.entries) {
		return false, false, ErrBroken
	}
	var b [EntryBytes]byte
	copy(b[:], v.mem[v.entry(s.taken):])
	s.taken++
	v.store(v.ring+ringSubmitHead, s.taken)
	return true, e.decode(b[:]), nil
}

// Complete writes a completion. wake says whether the client has to be woken. It returns ErrBroken
// if there is no room, which a client that keeps to the rules always leaves.
func (s *Server) Complete(c Completion) (wake bool, err error) {
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	v := s.v
	if s.written-v.load(v.ring+ringCompleteHead) >= uint32(v.entries) {
		return false, ErrBroken
	}
	at := v.completion(s.written)
	b := v.mem[at : at+CompletionBytes]
	le.PutUint64(b, c.UserData)
	le.PutUint64(b[8:], uint64(c.Result))
	s.written++
	v.store(v.ring+ringCompleteTail, s.written)
	return atomic.SwapUint32(v.word(v.ring+ringClientSleeps), 0) != 0, nil
}

// Sleep announces that the server is going to wait for the client to wake it. It returns false if
// there are entries already.
func (s *Server) Sleep() (ok bool, err error) {
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	v := s.v
	atomic.StoreUint32(v.word(v.ring+ringServerSleeps), 1)
	if v.load(v.ring+ringSubmitTail) != s.taken {
		v.store(v.ring+ringServerSleeps, 0)
		return false, nil
	}
	return true, nil
}

// Awake takes the announcement back, so that the client wakes nobody in vain.
func (s *Server) Awake() (err error) {
	defer hostile.Guard(&err, debug.SetPanicOnFault(true))
	s.v.store(s.v.ring+ringServerSleeps, 0)
	return nil
}
