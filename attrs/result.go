package attrs

import "time"

// Answer is what became of one attribute.
type Answer struct {
	Status Status
	Reason Reason
	// Source is where the value came from that was acted on, and Offered who else had one.
	Source  Source
	Offered Sources
}

// Origin says where the data of a request came from or went to.
type Origin uint8

// The origins; the numbers are on the wire.
const (
	// OriginUnknown: nobody said.
	OriginUnknown Origin = iota
	// OriginNone: no data was moved.
	OriginNone
	OriginRAM
	OriginSSD
	OriginBacking
	// OriginMixed: several of them.
	OriginMixed

	originEnd
)

var originNames = []string{"unknown", "none", "ram", "ssd", "backing", "mixed"}

func (o Origin) String() string { return nameOf(originNames, uint64(o), "origin") }

// And is the origin of two pieces together. A piece of which nobody said anything makes all of it
// unknown; one without data changes nothing.
func (o Origin) And(p Origin) Origin {
	switch {
	case o == p:
		return o
	case o == OriginUnknown || p == OriginUnknown:
		return OriginUnknown
	case o == OriginNone:
		return p
	case p == OriginNone:
		return o
	}
	return OriginMixed
}

// Timing is what the timing attribute returns, in whole nanoseconds. Times can overlap, so they
// need not add up to Total.
type Timing struct {
	// Queued is the time before the first I/O was started, SSD and Backing the time in which I/O of
	// the request was under way there, Total all of it.
	Queued, SSD, Backing, Total time.Duration
}

// Device is the number of a device that answers, unique on the machine and not 0.
type Device uint32

// MaxDevices is how many answering devices are told apart; more are not counted.
const MaxDevices = 8

// Results are the answers for one request, or one piece of it. The zero value is that of
// silence: nothing was handled. It is a plain value of a fixed size; returned checksums are a
// reference to memory of whoever filled it.
type Results struct {
	// Blocks is how many blocks of BlockSize bytes the request or piece covers.
	Blocks uint32
	// Origin is where the data came from or went to.
	Origin Origin

	resultsHead
	unknown [MaxUnknown]unknownAnswer
}

// resultsHead is all but the answers for unknown attributes, as setHead is.
type resultsHead struct {
	timing Timing
	sums   []byte
	answer [idEnd]Answer
	// said has the ids whose answers may be other than empty.
	said idSet
	// stamp is the same for results with the same answers; 0 is none.
	stamp uint64

	frame     Reason
	algorithm Algorithm
	badBlock  uint32
	nDevices  uint8
	nUnknown  uint8
	devices   [MaxDevices]Device
}

// Clear makes r the results of silence.
func (r *Results) Clear() { r.Blocks, r.Origin, r.resultsHead = 0, 0, resultsHead{} }

// unknownAnswer is the answer for an id that has no row; they are in order.
type unknownAnswer struct {
	id     ID
	status Status
	reason Reason
}

// Request is what of a request decides which attributes apply to it.
type Request struct {
	Direction Direction
	// Off and Bytes are its place on the device and its length, in bytes.
	Off, Bytes int64
}

// Begin replaces r with what can be answered for a set without knowing the cache: what is invalid,
// unknown or not meant for such a request is answered, the rest is [Results.Pending]. dev is the
// device that answers.
func (r *Results) Begin(s *Set, q Request, dev Device) {
	r.Blocks, r.Origin = uint32((q.Bytes+BlockSize-1)/BlockSize), OriginNone
	r.resultsHead = resultsHead{frame: s.frame}
	if dev != 0 {
		r.devices[0], r.nDevices = dev, 1
	}
	r.said = s.has | s.bad
	for left := s.has; left != 0; left &= left - 1 {
		id := lowest(left)
		a := &r.answer[id]
		a.Source, a.Offered = s.source[id], s.offered[id]
	}
	for left := s.has &^ meantFor[q.Direction&Both]; left != 0; left &= left - 1 {
		r.set(lowest(left), Ignored, ReasonDirection)
	}
	if s.has.has(IDChecksum) {
		r.beginChecksum(s, q)
	}
	for left := s.bad; left != 0; left &= left - 1 {
		id := lowest(left)
		r.set(id, Invalid, s.reason[id])
	}
	r.nUnknown = s.nUnknown
	for i := range int(s.nUnknown) {
		u := &s.unknown[i]
		r.unknown[i] = unknownAnswer{u.id, Unsupported, ReasonUnknown}
		if u.reason != ReasonNone {
			r.unknown[i].status, r.unknown[i].reason = Invalid, u.reason
		}
	}
}

// meantFor has the attributes for each direction.
var meantFor = func() (m [Both + 1]idSet) {
	for d := range m {
		for id := ID(1); id < idEnd; id++ {
			m[d].put(id, registry[id].Direction&Direction(d) != 0)
		}
	}
	return m
}()

// beginChecksum answers checksums that do not fit the request.
func (r *Results) beginChecksum(s *Set, q Request) {
	verify := s.Checksum().Blocks()
	switch {
	case q.Off%BlockSize != 0 || q.Bytes%BlockSize != 0 || q.Bytes == 0:
		r.set(IDChecksum, Ignored, ReasonAlignment)
	case q.Bytes > MaxBlocks*BlockSize:
		r.set(IDChecksum, Ignored, ReasonTooLarge)
	case verify != 0 && int64(verify) != q.Bytes/BlockSize:
		r.set(IDChecksum, Invalid, ReasonCount)
	}
}

// set answers for a known id, keeping the sources.
func (r *Results) set(id ID, st Status, why Reason) {
	a := &r.answer[id]
	a.Status, a.Reason = st, why
	r.said |= 1 << id
	r.stamp = 0
}

// Pending says whether the set has the attribute, valid and fit for the request, and nothing
// has been answered yet: then it is to be acted on.
func (r *Results) Pending(s *Set, id ID) bool {
	return s.Has(id) && r.answer[id].Status == NotHandled
}

// Handle answers that the attribute had its effect.
func (r *Results) Handle(id ID) { r.Answer(id, Handled, ReasonNone) }

// Ignore answers that the attribute has no effect here.
func (r *Results) Ignore(id ID, why Reason) { r.Answer(id, Ignored, why) }

// Answer answers for an attribute; for an id without a row only if the set had it.
func (r *Results) Answer(id ID, st Status, why Reason) {
	if id.Known() {
		r.set(id, st, why)
		return
	}
	for i := range int(r.nUnknown) {
		if u := &r.unknown[i]; u.id == id {
			u.status, u.reason = st, why
		}
	}
}

// For is the answer for an attribute. Those without a row have no source.
func (r *Results) For(id ID) Answer {
	if id.Known() {
		return r.answer[id]
	}
	for _, u := range r.unknown[:r.nUnknown] {
		if u.id == id {
			return Answer{Status: u.status, Reason: u.reason}
		}
	}
	return Answer{}
}

// Frame is why the whole set could not be read; ReasonNone if it could, or nobody answered.
func (r *Results) Frame() Reason { return r.frame }

// Devices are those that answered, of at most MaxDevices; none if nobody did. It refers to r.
func (r *Results) Devices() []Device { return r.devices[:r.nDevices:r.nDevices] }

// SetTiming answers the timing attribute. Negative times count as 0.
func (r *Results) SetTiming(t Timing) {
	r.timing = Timing{max(t.Queued, 0), max(t.SSD, 0), max(t.Backing, 0), max(t.Total, 0)}
	r.Handle(IDTiming)
}

// Timing is what timing returned.
func (r *Results) Timing() (Timing, bool) {
	return r.timing, r.answer[IDTiming].Status == Handled
}

// SetChecksums answers the checksum attribute: verified, if that was asked for, and with the
// checksums to return, as [Checksum.Sums] has them; empty if only verification was asked for. r
// refers to sums. If they are not a whole number of at most MaxBlocks the answer is Ignored for
// ReasonSpace.
func (r *Results) SetChecksums(a Algorithm, sums []byte) {
	if !a.fits(sums) {
		r.DropChecksums(ReasonSpace)
		return
	}
	r.algorithm, r.sums = a, sums
	r.Handle(IDChecksum)
}

// Plain says that there is nothing in the results that takes much room: their encoding fits a slot.
func (r *Results) Plain() bool { return len(r.sums) == 0 && r.nUnknown == 0 }

// Several says whether several devices have a part in the results, so that they have no encoding.
func (r *Results) Several() bool { return r.nDevices > 1 }

// DropChecksums gives up returning checksums, for instance as they do not fit the place for
// results.
func (r *Results) DropChecksums(why Reason) {
	r.algorithm, r.sums, r.badBlock = 0, nil, 0
	r.Ignore(IDChecksum, why)
}

// SetMismatch answers that the data does not match: block, counted from the start of the
// request, is the first that differs. The request has to fail with [ErrnoMismatch] and without
// effect.
func (r *Results) SetMismatch(a Algorithm, block uint32) {
	r.algorithm, r.sums, r.badBlock = a, nil, block
	r.Answer(IDChecksum, Handled, ReasonMismatch)
}

// Mismatch is the first block whose data did not match its checksum.
func (r *Results) Mismatch() (block uint32, ok bool) {
	return r.badBlock, r.answer[IDChecksum].Reason == ReasonMismatch
}

// Checksums are those returned, as [Checksum.Sums] has them; of algorithm 0 if there are none.
func (r *Results) Checksums() (Algorithm, []byte) {
	if len(r.sums) == 0 {
		return 0, nil
	}
	return r.algorithm, r.sums
}
