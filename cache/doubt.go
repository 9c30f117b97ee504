package cache

import "encoding/binary"

// doubtRange are the records, from one LSN up to another, that a start has taken from the pending ring of a
// daemon which had lost its SSD: what they speak of was perhaps in the SSD's volatile cache only. The start
// writes them to the journal and then looks at the data. A crash in between must not make the next start believe
// them, as it may have no ring any more; so the superblock has the range from before that until the start is
// complete.
type doubtRange struct{ from, to LSN }

// Places in the superblock page of a cache that was not stopped in order; one that was has its stopRecord there.
const (
	supDoubtFrom = 200
	supDoubtTo   = 208
)

func (d doubtRange) has(l LSN) bool { return d.from <= l && l < d.to }

func (d doubtRange) encode(p []byte) {
	binary.LittleEndian.PutUint64(p[supDoubtFrom:], uint64(d.from))
	binary.LittleEndian.PutUint64(p[supDoubtTo:], uint64(d.to))
}

func decodeDoubt(p []byte) doubtRange {
	return doubtRange{
		LSN(binary.LittleEndian.Uint64(p[supDoubtFrom:])), LSN(binary.LittleEndian.Uint64(p[supDoubtTo:])),
	}
}

// noteDoubt puts n records, the last ones that were replayed, into the range. They are not in the journal yet.
func (r *recovery) noteDoubt(n int) error {
	sb := r.c.sb
	d := doubtRange{r.next - LSN(n), r.next}
	if sb.doubt.from < sb.doubt.to { // an earlier start came this far
		d = doubtRange{min(d.from, sb.doubt.from), max(d.to, sb.doubt.to)}
	}
	sb.Clean, sb.stop, sb.doubt = false, nil, d
	return writeSuper(r.c.ssd, sb)
}
