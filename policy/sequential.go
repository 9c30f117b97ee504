package policy

// Sequential recognises streams of contiguous requests, as bcache does: it remembers where the
// recent ones ended and how long the stream was by then. The zero value is ready. It is not
// safe for concurrent use.
type Sequential struct {
	ends [128]streamEnd
}

type streamEnd struct {
	end uint64 // address after the stream's last byte, in bytes
	run uint64 // length of the stream so far, in bytes
}

// Add notes a request and returns the length in bytes of the stream that it ends.
func (s *Sequential) Add(off, length uint64) (run uint64) {
	if e := &s.ends[s.place(off)]; e.end == off && e.run > 0 {
		run = e.run
		*e = streamEnd{}
	}
	run += length
	s.ends[s.place(off+length)] = streamEnd{end: off + length, run: run}
	return run
}

func (s *Sequential) place(off uint64) uint64 {
	return off * 0x9e3779b97f4a7c15 >> 57
}
