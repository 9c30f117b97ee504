package sim

import (
	"errors"
	"fmt"

	"ubcache/attrs"
	"ubcache/cache"
)

// excuse says why a request may fail.
type excuse uint8

const (
	excuseLost    excuse = 1 << iota // a dirty block of it cannot be read from the SSD
	excuseBacking                    // the backing device failed an operation on its sectors
	excuseJournal                    // the journal could not be written
	excuseGone                       // the backing device was gone, and not waited for
	restores                         // no excuse yet: it reads a block that it keeps in part from there
	failedOnce                       // nor is this: an operation of it has failed for the device's absence
)

// excuse notes which requests in flight may fail for an operation that completes, with err or with
// data that is not what was written. It is told before the engine.
func (s *Sim) excuse(op *cache.Op, err error) {
	if op.Dev == cache.SSD {
		switch {
		case op.Kind == cache.OpRead && (err != nil || s.ssd.marked(op.Off, op.Len, markWrong)):
			s.wishes.forget() // a copy that the SSD fails loses its pin
			s.ssd.doubt(op.Off, op.Len)
			for _, r := range s.reqs {
				if s.reads(r, op) {
					s.wishes.end(r) // with the copy, once its other operations are done
				}
				lost := s.losing(r, op, false)
				if lost {
					r.excuse |= excuseLost
				}
				// Until it is certain that the block is lost it may be written back, and what a write
				// keeps of it is read there.
				if lost && r.Op == cache.ReqWrite || s.restoring(r, op) {
					r.excuse |= restores
				}
			}
		case err != nil && (op.Kind == cache.OpFlush || s.isMeta(op)):
			s.shaky = s.opID
			for _, r := range s.reqs {
				r.excuse |= excuseJournal
			}
		}
		return
	}
	if err == nil {
		return
	}
	if op.Kind == cache.OpFlush {
		s.lossy |= 1 << op.Dev
	}
	s.unkept(op)
	if s.cfg.Ordered && op.Kind != cache.OpRead {
		s.orders.failed |= 1 << op.Dev
	}
	for _, r := range s.reqs {
		over := r.Off < op.Off+op.Len && op.Off < r.Off+r.Len
		if r.Backing == op.Dev && op.Kind == cache.OpRead && over && !s.well() && s.restoring(r, nil) {
			r.excuse |= restores // it does not wait for an SSD that stalls, or is gone
		}
		if r.Backing == op.Dev && (op.Kind == cache.OpFlush && r.Op != cache.ReqRead ||
			over && (op.Kind == cache.OpRead) == (r.Op == cache.ReqRead) ||
			op.Kind == cache.OpRead && over && r.excuse&restores != 0) {
			r.excuse |= excuseBacking
		}
	}
}

// unkept is for an operation that a backing device has failed: what is pending counts as dirty again after a
// flush, or where it is a change.
func (s *Sim) unkept(op *cache.Op) {
	if op.Kind != cache.OpRead && s.away() { // dirty again, it is needed from an SSD that is not there
		s.van.dirty[s.device(op.Dev)] = true
	}
	switch op.Kind {
	case cache.OpRead:
	case cache.OpFlush:
		s.redirty(op.Dev, 0, s.disk(op.Dev).size)
	default:
		s.redirty(op.Dev, op.Off, op.Len)
	}
}

// redirty notes which requests may fail now that pending blocks of [off, off+n) are about to be dirty again: those
// that need one of which a read of the SSD has failed already. When they are answered it may have been overwritten.
func (s *Sim) redirty(id cache.BackingID, off, n int64) {
	s.noteRedirty(id, off, n)
	for _, r := range s.reqs {
		from, to := max(r.Off, off), min(r.Off+r.Len, off+n)
		if r.Backing != id || r.Op > cache.ReqWrite {
			continue
		}
		for at := from / cache.BlockSize * cache.BlockSize; at < to; at += cache.BlockSize {
			if r.Op == cache.ReqWrite && r.Off <= at && at+cache.BlockSize <= r.Off+r.Len {
				continue
			}
			p, ok := s.c.Locate(id, at)
			if ok && p.Pending && s.ssd.marked(p.Off, cache.BlockSize, markDoubted) {
				r.excuse |= excuseLost
			}
		}
	}
}

// foresee notes what a request that is about to be submitted may fail for already.
func (s *Sim) foresee(r *request) {
	for _, f := range s.ops {
		if f.id <= s.shaky && f.op.Dev == cache.SSD {
			r.excuse |= excuseJournal // it may join a commit that has failed
		}
	}
	if s.losing(r, nil, true) {
		r.excuse |= excuseLost
	}
	r.bad = r.read != nil && s.bad(r)
	if s.cfg.Gone > 0 && s.presence(r.dev) == cache.Failing {
		r.excuse |= excuseGone
		r.hit = s.hit(r)
	}
}

// losing reports whether a request needs a dirty block that the SSD cannot return: one in the slots
// that op reads, or one that the engine knows of, and rightly so; or with soon one of which a read has
// failed, so that the engine may be about to know it.
func (s *Sim) losing(r *request, op *cache.Op, soon bool) bool {
	for at := r.Off / cache.BlockSize * cache.BlockSize; at < r.Off+r.Len; at += cache.BlockSize {
		whole := r.Off <= at && at+cache.BlockSize <= r.Off+r.Len
		if r.Op > cache.ReqWrite || r.Op == cache.ReqWrite && whole {
			continue // it does not matter what was there
		}
		p, ok := s.c.Locate(r.Backing, at)
		switch {
		case !ok || !p.Dirty:
		case op != nil && !p.Pending && op.Off <= p.Off && p.Off < op.Off+op.Len &&
			(op.Len <= cache.BlockSize || s.ssd.marked(p.Off, cache.BlockSize, markUnreadable|markWrong)):
			return true
		case p.Bad && s.ssd.marked(p.Off, cache.BlockSize, markUnreadable|markWrong|markDoubted):
			return true
		case soon && !p.Pending && s.ssd.marked(p.Off, cache.BlockSize, markDoubted):
			return true
		}
	}
	return false
}

// reads reports whether op reads slots that have blocks of a request.
func (s *Sim) reads(r *request, op *cache.Op) bool {
	for at := r.Off / cache.BlockSize * cache.BlockSize; at < r.Off+r.Len; at += cache.BlockSize {
		if p, ok := s.c.Locate(r.Backing, at); ok && op.Off <= p.Off && p.Off < op.Off+op.Len {
			return true
		}
	}
	return false
}

// restoring reports whether a write keeps a part of a block that is in the slots that op reads, or any, and on
// the backing device, too, but not flushed there.
func (s *Sim) restoring(r *request, op *cache.Op) bool {
	for at := r.Off / cache.BlockSize * cache.BlockSize; at < r.Off+r.Len; at += cache.BlockSize {
		if r.Op != cache.ReqWrite || r.Off <= at && at+cache.BlockSize <= r.Off+r.Len {
			continue
		}
		p, ok := s.c.Locate(r.Backing, at)
		if ok && p.Pending && (op == nil || op.Off <= p.Off && p.Off < op.Off+op.Len) {
			return true
		}
	}
	return false
}

// may reports whether the request may fail with its error.
func (s *Sim) may(r *request) bool {
	switch err := r.Err; {
	case errors.Is(err, cache.ErrLost): // a later flush says what an earlier one may have lost
		return s.lossy>>r.Backing&1 != 0 && r.Op != cache.ReqRead
	case errors.Is(err, cache.ErrDirtyBad):
		return r.excuse&excuseLost != 0
	case errors.Is(err, cache.ErrAbsent):
		return r.excuse&excuseGone != 0 && (!r.hit || !s.hit(r))
	case r.excuse&(excuseBacking|excuseGone) != 0, s.orders.failed>>r.Backing&1 != 0 && r.Op != cache.ReqRead:
		return true
	}
	return r.excuse&excuseJournal != 0 && (r.Op != cache.ReqRead)
}

// failed is for a request that failed, but not for its attributes.
func (s *Sim) failed(r *request) {
	if s.losing(r, nil, false) {
		r.excuse |= excuseLost
	}
	// Without writeback nothing is dirty, but for what a crash or a failed change has left in doubt.
	clean := s.cfg.Through && s.res.Crashes == 0 && !s.backingFaults()
	if !s.may(r) || clean && errors.Is(r.Err, cache.ErrDirtyBad) {
		s.fail(fmt.Errorf("%s of sectors %d+%d failed, but nothing excuses it: %w",
			r.Op, r.first, r.n, r.Err))
		return
	}
	s.res.Failed++
	m := s.models[r.dev]
	switch {
	case r.read != nil:
		m.forget(r.read)
	case r.written:
		// Each of its sectors may have the old content or the new one, until a read shows it.
		m.writeDead(r.first, r.n, r.v)
	}
}

// ofAttributes reports whether the request failed for what its attributes ask.
func (r *request) ofAttributes() bool {
	return errors.Is(r.Err, attrs.ErrnoRefused) || errors.Is(r.Err, attrs.ErrnoMismatch) ||
		errors.Is(r.Err, attrs.ErrnoDeadline)
}
