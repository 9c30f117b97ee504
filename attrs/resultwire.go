package attrs

import "time"

const (
	timingBytes = 32
	// sumsBytes is what comes before the returned checksums.
	sumsBytes = 8
)

// resultSize is the size of what an attribute's answer carries.
func (r *Results) resultSize(id ID) int {
	switch {
	case id == IDTiming && r.answer[id].Status == Handled:
		return timingBytes
	case id == IDChecksum && r.hasSums():
		return sumsBytes + len(r.sums)
	}
	return 0
}

// hasSums says whether the answer for checksums carries anything: checksums or the bad block.
func (r *Results) hasSums() bool {
	a := r.answer[IDChecksum]
	return a.Status == Handled && (len(r.sums) != 0 || a.Reason == ReasonMismatch)
}

// EncodedSize is how many bytes Encode writes.
func (r *Results) EncodedSize() int {
	n := resultsHeaderBytes
	for id := ID(1); id < idEnd; id++ {
		if r.answer[id].Status != NotHandled {
			n += entryBytes + padded(r.resultSize(id))
		}
	}
	for _, u := range r.unknown[:r.nUnknown] {
		if u.status != NotHandled {
			n += entryBytes
		}
	}
	return n
}

// Encode writes the results to the start of b and returns how many bytes that took, a multiple
// of 8. What is not handled is left out. If it does not fit, nothing is written (ErrSpace): a
// server then leaves the checksums out with DropChecksums(ReasonSpace), and the rest fits a
// slot. Results of several devices have no encoding (ErrSeveral). b may be shared memory; it is
// only written to.
func (r *Results) Encode(b []byte) (int, error) {
	if r.nDevices > 1 {
		return 0, ErrSeveral
	}
	if len(b) < maxPlainFrame || len(r.sums) != 0 || r.nUnknown != 0 {
		if size := r.EncodedSize(); size > len(b) || size > MaxBytes {
			return 0, ErrSpace
		}
		return r.encodeAll(b), nil
	}
	w, i, count := wordsOf(b), resultsHeaderBytes/8, 0
	for left := r.said; left != 0; left &= left - 1 {
		id := lowest(left)
		a := &r.answer[id]
		if a.Status == NotHandled {
			continue
		}
		size := 0
		if id == IDTiming || id == IDChecksum {
			size = r.resultSize(id)
		}
		w.put(i, a.head(id, size))
		i++
		if size != 0 {
			i += r.putResult(b[8*i:], id) / 8
		}
		count++
	}
	r.putHeader(b, count, 8*i)
	return 8 * i, nil
}

// head is the head of the entry for an answer.
func (a *Answer) head(id ID, size int) uint64 {
	return entryHead(id, byte(a.Status), byte(a.Reason), size, byte(a.Source), byte(a.Offered))
}

func (r *Results) putHeader(b []byte, count, size int) {
	putHeader(b, resultsMagic, byte(r.frame), count, size, uint32(r.devices[0]))
	le.PutUint64(b[16:], uint64(r.Blocks)|uint64(r.Origin)<<32)
}

// encodeAll is Encode for all results.
func (r *Results) encodeAll(b []byte) int {
	off, count := resultsHeaderBytes, 0
	for id := ID(1); id < idEnd; id++ {
		a := &r.answer[id]
		if a.Status == NotHandled {
			continue
		}
		size := r.resultSize(id)
		le.PutUint64(b[off:], a.head(id, size))
		off += entryBytes
		if size != 0 {
			off += r.putResult(b[off:], id)
		}
		count++
	}
	for _, u := range r.unknown[:r.nUnknown] {
		if u.status != NotHandled {
			le.PutUint64(b[off:], entryHead(u.id, byte(u.status), byte(u.reason), 0, 0, 0))
			off += entryBytes
			count++
		}
	}
	r.putHeader(b, count, off)
	return off
}

// putResult writes what the answer for timing or checksums carries.
func (r *Results) putResult(b []byte, id ID) int {
	if id == IDTiming {
		le.PutUint64(b, uint64(r.timing.Queued))
		le.PutUint64(b[8:], uint64(r.timing.SSD))
		le.PutUint64(b[16:], uint64(r.timing.Backing))
		le.PutUint64(b[24:], uint64(r.timing.Total))
		return timingBytes
	}
	le.PutUint64(b, uint64(r.algorithm)|uint64(r.badBlock)<<32)
	return sumsBytes + putBytes(b[sumsBytes:], r.sums)
}

// Decode replaces r with the results that b begins with. It returns ErrNone if there are none,
// and a [Reason] if they cannot be read; r then is that of silence. What a newer server answers
// for ids that are not known here, and reasons and sources not known here, are kept. As with
// [Set.Decode], b has to be private, r refers to it, and nothing is allocated.
func (r *Results) Decode(b []byte) error {
	r.Clear()
	if len(b) < len(resultsMagic) || string(b[:len(resultsMagic)]) != resultsMagic {
		return ErrNone
	}
	if why := r.decode(b); why != ReasonNone {
		r.Clear()
		return why
	}
	return nil
}

func (r *Results) decode(b []byte) Reason {
	if len(b) < 6 {
		return ReasonLength
	}
	if b[4] != version {
		return ReasonVersion
	}
	var in reader
	if why := in.length(b, resultsHeaderBytes); why != ReasonNone {
		return why
	}
	origin := le.Uint32(b[20:])
	if origin >= uint32(originEnd) {
		return ReasonHeader
	}
	r.frame, r.Blocks, r.Origin = Reason(b[5]), le.Uint32(b[16:]), Origin(origin)
	if d := Device(le.Uint32(b[12:])); d != 0 {
		r.devices[0], r.nDevices = d, 1
	}
	var e entry
	for range le.Uint16(b[6:]) {
		if why := in.next(&e); why != ReasonNone {
			return why
		}
		if why := r.take(&e); why != ReasonNone {
			return why
		}
	}
	return in.end()
}

// take takes one answer. A server does not write what is wrong, so anything that is spoils the
// whole.
func (r *Results) take(e *entry) Reason {
	st := Status(e.b2)
	switch {
	case e.again:
		return ReasonDuplicate
	case st == NotHandled || st >= statusEnd:
		return ReasonValue
	case !zeroes(e.pad):
		return ReasonReserved
	}
	if !e.id.Known() {
		// A value is skipped: it means nothing here.
		if r.nUnknown == MaxUnknown {
			return ReasonTooMany
		}
		r.unknown[r.nUnknown] = unknownAnswer{e.id, st, Reason(e.b3)}
		r.nUnknown++
		return ReasonNone
	}
	r.answer[e.id] = Answer{
		Status: st, Reason: Reason(e.b3), Source: Source(e.b6), Offered: Sources(e.b7),
	}
	r.said |= 1 << e.id
	r.stamp = 0
	switch {
	case e.id == IDTiming && st == Handled:
		return r.takeTiming(e.value)
	case e.id == IDChecksum && st == Handled:
		return r.takeSums(e.value)
	case len(e.value) != 0:
		return ReasonSize
	}
	return ReasonNone
}

func (r *Results) takeTiming(b []byte) Reason {
	if len(b) != timingBytes {
		return ReasonSize
	}
	for i, to := range [...]*time.Duration{
		&r.timing.Queued, &r.timing.SSD, &r.timing.Backing, &r.timing.Total,
	} {
		*to = time.Duration(le.Uint64(b[8*i:]))
		if *to < 0 {
			return ReasonValue
		}
	}
	return ReasonNone
}

func (r *Results) takeSums(b []byte) Reason {
	mismatch := r.answer[IDChecksum].Reason == ReasonMismatch
	if len(b) == 0 && !mismatch {
		return ReasonNone
	}
	if len(b) < sumsBytes || len(b) == sumsBytes && !mismatch {
		return ReasonSize
	}
	a, bad, sums := le.Uint32(b), le.Uint32(b[4:]), b[sumsBytes:]
	switch {
	case a>>8 != 0 || bad != 0 && !mismatch:
		return ReasonReserved
	case Algorithm(a).Width() == 0:
		return ReasonValue
	case !Algorithm(a).fits(sums):
		return ReasonSize
	}
	r.algorithm, r.badBlock = Algorithm(a), bad
	if len(sums) != 0 {
		r.sums = sums
	}
	return ReasonNone
}
