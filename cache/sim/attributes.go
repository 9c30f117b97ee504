package sim

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"ubcache/attrs"
	"ubcache/cache"
)

// asked is what a request's attributes say about its outcome.
type asked struct {
	refuse bool // something required is not handled
	wrong  bool // the checksums are not those of the data
	again  bool // issued a second time after a kill: the first may have had an effect
	sure   bool // there was one legal content when the checksums were chosen
	sums   attrs.Checksum
}

// neverLegal is the stamp of data that is in none of the model's versions.
const neverLegal = 1 << 62

// fails reports that the request must fail without effect: the model is not told of it.
func (a *asked) fails() bool { return a.refuse || a.wrong }

// ask chooses which of the attributes are to fail the request.
func (s *Sim) ask(r *request) {
	if !s.cfg.Attributes {
		return
	}
	r.asked.refuse = s.rng.IntN(20) == 0
	r.asked.wrong = s.rng.IntN(10) == 0 && s.summed(r)
}

// summed reports whether the engine can look at the request's data.
func (s *Sim) summed(r *request) bool {
	const blockSectors = attrs.BlockSize / sectorSize
	return !s.cfg.ZeroCopy && r.Op <= cache.ReqWrite && r.first%blockSectors == 0 &&
		r.n%blockSectors == 0 && r.n <= attrs.MaxBlocks*blockSectors
}

// attributes gives a request some that the engine acts on. Whatever they are, the data is right, and
// what fails without effect has none.
func (s *Sim) attributes(r *request) {
	r.attrs, r.results = attrs.Set{}, attrs.Results{}
	r.Attrs, r.Results = &r.attrs, &r.results
	if s.rng.IntN(8) == 0 {
		r.Results = nil // nobody wants to know
	}
	s.wish(r)
	if s.rng.IntN(4) == 0 {
		r.attrs.SetMode(attrs.WriteMode(1 + s.rng.IntN(3)))
	}
	if s.rng.IntN(4) == 0 {
		r.attrs.SetTiming()
	}
	if s.rng.IntN(4) == 0 {
		r.attrs.SetTrace(uint64(r.Tag))
	}
	if s.rng.IntN(4) == 0 && !r.asked.again {
		r.attrs.SetDeadline(time.Duration(1+s.rng.IntN(30_000)) * time.Microsecond)
	}
	r.asked.sums = attrs.Checksum{}
	if r.asked.wrong || s.rng.IntN(3) == 0 {
		s.checksums(r)
	}
	if r.asked.refuse {
		_ = r.attrs.AddUnknown(attrs.PrivateMin, nil)
		r.attrs.Require(attrs.PrivateMin)
	}
}

// checksums gives a request checksums to verify, to return, or both. Those of a read are of a legal
// content, so that they may turn out wrong if there are several.
func (s *Sim) checksums(r *request) {
	c := attrs.Checksum{
		Algorithm: attrs.Algorithm(1 + s.rng.IntN(3)), Return: s.rng.IntN(2) == 0,
	}
	if !c.Return || r.asked.wrong || s.rng.IntN(2) == 0 {
		data := bytes.Clone(r.data)
		if r.read != nil {
			for i, allowed := range r.read.allowed {
				fillSector(data[i*sectorSize:], r.first+i, allowed[len(allowed)-1].stamp)
			}
			r.asked.sure = !r.read.open()
		}
		if r.asked.wrong {
			data[s.rng.IntN(len(data))] ^= 1 << s.rng.IntN(8)
		}
		c.Sums = c.Algorithm.AppendSums(nil, data)
	}
	r.attrs.SetChecksum(c)
	if s.summed(r) {
		r.asked.sums = c
	}
}

// finishAttributes compares the outcome with what the attributes ask, and reports whether the
// request failed for them as it may.
func (s *Sim) finishAttributes(r *request) bool {
	if err := s.checkAnswers(r); err != nil {
		s.fail(fmt.Errorf("%s of sectors %d+%d with %v: %w", r.Op, r.first, r.n, &r.attrs, err))
	}
	m := s.models[r.dev]
	switch {
	case r.asked.refuse:
		s.res.Refused++
		s.expect(r, attrs.ErrnoRefused)
	case errors.Is(r.Err, attrs.ErrnoMismatch):
		s.res.Mismatched++
		s.mismatched(r)
		return true
	case r.asked.wrong && !errors.Is(r.Err, attrs.ErrnoDeadline):
		s.expect(r, attrs.ErrnoMismatch)
	case errors.Is(r.Err, attrs.ErrnoDeadline):
		s.res.Late++
		if !r.attrs.Has(attrs.IDDeadline) || r.Op == cache.ReqFlush {
			return false // an error like any other
		}
		if r.written {
			m.writeUndone(r.first, r.n, r.v)
		}
	default:
		return false
	}
	if r.read != nil {
		m.forget(r.read)
	}
	return true
}

func (s *Sim) expect(r *request, want error) {
	if !errors.Is(r.Err, want) {
		s.fail(fmt.Errorf("%s of sectors %d+%d with %v: error %v, want %v",
			r.Op, r.first, r.n, &r.attrs, r.Err, want))
	}
}

// mismatched is for a request whose data was not what its checksums say. What a read has found in its
// place is something legal all the same, if it has read all of it.
func (s *Sim) mismatched(r *request) {
	if r.read == nil {
		if !r.asked.wrong {
			s.fail(fmt.Errorf("write of sectors %d+%d: good data does not match", r.first, r.n))
		}
		return
	}
	if !r.asked.wrong && r.asked.sure && !r.read.open() {
		s.fail(fmt.Errorf("read of sectors %d+%d: the only legal data does not match", r.first, r.n))
	}
	// A part may have been given up, or be lost; what was lost when the read came may have been overwritten since.
	if r.attrs.Has(attrs.IDDeadline) || r.excuse != 0 || r.without || r.bad || s.bad(r) {
		s.models[r.dev].forget(r.read)
		return
	}
	if err := s.models[r.dev].readDone(r.read, r.data); err != nil {
		s.fail(fmt.Errorf("device %d, read that does not match: %w", r.dev, err))
	}
}

// bad reports whether the SSD has lost a block of the request, as reads of the block alone are told.
func (s *Sim) bad(r *request) bool {
	for at := r.Off / cache.BlockSize * cache.BlockSize; at < r.Off+r.Len; at += cache.BlockSize {
		if p, ok := s.c.Locate(r.Backing, at); ok && p.Bad {
			return true
		}
	}
	return false
}

// checkAnswers compares the answers with the request.
func (s *Sim) checkAnswers(r *request) error {
	c, res := r.asked.sums, r.Results
	if r.Err == nil && len(c.Sums) != 0 {
		if b, ok := c.Verify(0, r.data); !ok {
			return fmt.Errorf("succeeded, but block %d does not match", b)
		}
	}
	if res == nil {
		return nil
	}
	sum, late := res.For(attrs.IDChecksum), res.For(attrs.IDDeadline)
	block, bad := res.Mismatch()
	_, returned := res.Checksums()
	switch {
	case bad != errors.Is(r.Err, attrs.ErrnoMismatch):
		return fmt.Errorf("answer %v, error %v", sum, r.Err)
	case bad && r.Op == cache.ReqRead && c.Matches(int(block), r.data[block*attrs.BlockSize:][:attrs.BlockSize]):
		return fmt.Errorf("block %d matches, answer %v", block, sum)
	case r.Err == nil && c.Algorithm != 0 && sum.Status != attrs.Handled:
		return fmt.Errorf("checksum: %v", sum)
	case s.cfg.ZeroCopy && sum.Status == attrs.Handled:
		return fmt.Errorf("checksum of hidden data: %v", sum)
	case r.Err == nil && c.Return && !bytes.Equal(returned, c.Algorithm.AppendSums(nil, r.data)):
		return fmt.Errorf("checksums %x are not those of the data", returned)
	case !bad && (late.Reason == attrs.ReasonLate) != errors.Is(r.Err, attrs.ErrnoDeadline):
		return fmt.Errorf("deadline: %v, error %v", late, r.Err)
	case r.attrs.Has(attrs.IDDeadline) && late.Status != attrs.Handled:
		return fmt.Errorf("deadline: %v", late)
	}
	t, ok := res.Timing()
	if ok != r.attrs.Has(attrs.IDTiming) || max(t.Queued, t.SSD, t.Backing) > t.Total {
		return fmt.Errorf("timing: %t, %+v", ok, t)
	}
	return nil
}
