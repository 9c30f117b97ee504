package attrs

import "bytes"

// Combine adds the results of the next piece of a request that was split, in order of addresses. It
// starts from those of the first piece:
//
//	total := pieces[0]
//	for i := range pieces[1:] {
//		total.Combine(&pieces[1+i])
//	}
//
// Of each attribute the worse answer counts, from Handled by Ignored, NotHandled and
// Unsupported to Invalid: so it is Handled only if every piece was, and a piece that nobody
// answered shows. (Such a piece has no Blocks; the caller sets them, for what comes after it to
// be counted right.) Times are the longest of any piece. Returned checksums are appended to
// those of the pieces before if the slice has room for them, which they may be in already; else
// they are dropped (ReasonSpace).
func (r *Results) Combine(next *Results) {
	mine, theirs := r.answer[IDChecksum].Status, next.answer[IDChecksum].Status
	had := len(r.sums) != 0 || len(next.sums) != 0
	r.worst(next, r.Blocks)
	r.Blocks += next.Blocks
	if mine != Handled || theirs != Handled || !had || r.answer[IDChecksum].Reason == ReasonMismatch {
		r.sums = nil
		return
	}
	if len(r.sums) == 0 || len(next.sums) == 0 || r.algorithm != next.algorithm ||
		cap(r.sums)-len(r.sums) < len(next.sums) ||
		!r.algorithm.fits(r.sums[:len(r.sums)+len(next.sums)]) {
		r.DropChecksums(ReasonSpace)
		return
	}
	r.sums = append(r.sums, next.sums...)
}

// Join adds the results of another device for the same data, such as the other half of a
// mirror. Answers are combined as in Combine. If the devices returned different checksums there
// are none (ReasonDiffers).
func (r *Results) Join(other *Results) {
	mine, theirs := r.answer[IDChecksum].Status, other.answer[IDChecksum].Status
	r.worst(other, 0)
	r.Blocks = max(r.Blocks, other.Blocks)
	if mine != Handled || theirs != Handled || r.answer[IDChecksum].Reason == ReasonMismatch {
		r.sums = nil
		return
	}
	if !bytes.Equal(r.sums, other.sums) || len(r.sums) != 0 && r.algorithm != other.algorithm {
		r.DropChecksums(ReasonDiffers)
	}
}

// worst combines all but the returned checksums and the number of blocks. The blocks of o begin
// at block first of r.
func (r *Results) worst(o *Results, first uint32) {
	if a := &r.answer[IDChecksum]; a.Reason != ReasonMismatch && worse(o.answer[IDChecksum], *a) {
		r.badBlock = o.badBlock
		if o.answer[IDChecksum].Reason == ReasonMismatch {
			r.badBlock += first
			r.algorithm = o.algorithm
		}
	}
	r.said |= o.said
	r.stamp = 0
	for id := range r.answer {
		if worse(o.answer[id], r.answer[id]) {
			r.answer[id] = o.answer[id]
		}
	}
	if r.answer[IDChecksum].Reason != ReasonMismatch {
		r.badBlock = 0
	}
	r.worstUnknown(o)
	r.Origin = r.Origin.And(o.Origin)
	r.timing.Queued = max(r.timing.Queued, o.timing.Queued)
	r.timing.SSD = max(r.timing.SSD, o.timing.SSD)
	r.timing.Backing = max(r.timing.Backing, o.timing.Backing)
	r.timing.Total = max(r.timing.Total, o.timing.Total)
	if r.frame == ReasonNone {
		r.frame = o.frame
	}
	for _, d := range o.Devices() {
		r.addDevice(d)
	}
}

// worse says whether a is a worse answer than b: of two of one status, the one with a reason.
func worse(a, b Answer) bool {
	if a.Status != b.Status {
		return a.Status.severity() > b.Status.severity()
	}
	return b.Reason == ReasonNone && a.Reason != ReasonNone
}

// worstUnknown combines the answers for ids without a row. One that is missing counts as
// NotHandled, and is left out if that is the worse answer.
func (r *Results) worstUnknown(o *Results) {
	mine, n := r.unknown, int(r.nUnknown)
	r.nUnknown = 0
	r.unknown = [MaxUnknown]unknownAnswer{}
	i, j := 0, 0
	for i < n || j < int(o.nUnknown) {
		var a, b unknownAnswer
		id := idNone
		if i < n {
			id = mine[i].id
		}
		if j < int(o.nUnknown) {
			id = min(id, o.unknown[j].id)
		}
		if i < n && mine[i].id == id {
			a = mine[i]
			i++
		}
		if j < int(o.nUnknown) && o.unknown[j].id == id {
			b = o.unknown[j]
			j++
		}
		if worse(Answer{Status: b.status, Reason: b.reason}, Answer{Status: a.status, Reason: a.reason}) {
			a = b
		}
		if a.status != NotHandled && r.nUnknown < MaxUnknown {
			r.unknown[r.nUnknown] = unknownAnswer{id, a.status, a.reason}
			r.nUnknown++
		}
	}
}

// addDevice counts a device that answered, once.
func (r *Results) addDevice(d Device) {
	for _, have := range r.Devices() {
		if have == d {
			return
		}
	}
	if r.nDevices < MaxDevices {
		r.devices[r.nDevices] = d
		r.nDevices++
	}
}
